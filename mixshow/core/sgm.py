"""The names that Stability's own code (SGM, "compvis") gives to the modules of a diffusers UNet.

diffusers: `down_blocks.i.resnets.j`; SGM counts one flat list: `input_blocks.n.0`. With L layers per block,
n = 1 + (L + 1) i + j on the way down (its downsampler is the next number) and (L + 1) i + j on the way up.
"""

from __future__ import annotations

import re

from torch import nn

_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.?(.*)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.?(.*)")
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def sgm_names(unet: nn.Module) -> dict[str, tuple[str, ...]]:
    """SGM's paths of the UNet's modules, by diffusers' paths; empty for models of another build.

    Upsamplers have two: files count them after the attention of their block (`.2.conv`), also where there is none
    and SGM itself says `.1.conv`.
    """
    paths = [path for path, _ in unet.named_modules()]
    layers = len({path for path in paths if re.fullmatch(r"down_blocks\.0\.resnets\.\d+", path)})
    if not layers:
        return {}
    named = {path: _sgm(path, layers) for path in paths}
    return {path: names for path, names in named.items() if names}


def _sgm(path: str, layers: int) -> tuple[str, ...]:
    if path in _SINGLE:
        return (_SINGLE[path],)
    if match := _MIDDLE.fullmatch(path):
        kind, number, rest = match.groups()
        place = 2 * int(number) if kind == "resnets" else 2 * int(number) + 1
        return (_joined(f"middle_block.{place}", _RESNET.get(rest, rest)),)
    if not (match := _BLOCK.fullmatch(path)):
        return ()
    side, outer, kind, inner, rest = match.groups()
    first = (layers + 1) * int(outer)
    if kind == "downsamplers":
        return (f"input_blocks.{first + layers + 1}.0.op",) if rest == "conv" else ()
    if kind == "upsamplers":
        return tuple(f"output_blocks.{first + layers}.{at}.conv" for at in (2, 1)) if rest == "conv" else ()
    block = f"input_blocks.{1 + first + int(inner)}" if side == "down_blocks" else f"output_blocks.{first + int(inner)}"
    if kind == "resnets":
        return (_joined(f"{block}.0", _RESNET.get(rest, rest)),)
    return (_joined(f"{block}.1", rest),)


def _joined(block: str, rest: str) -> str:
    return f"{block}.{rest}" if rest else block
