"""The tensors of a base's models under the names, and in the shapes, of the original code of Stable Diffusion.

The way back is diffusers' converters, which `checkpoint` reads with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.sgm import sgm_names

_TEXT_MODEL = "text_model."
State = Mapping[str, Tensor]


def unet_tensors(unet: UNet2DConditionModel, state: State) -> dict[str, Tensor]:
    """A UNet's state dict as SGM names it.

    Raises:
        MixshowError: it has modules that SGM's UNets do not have.
    """
    names = sgm_names(unet)
    found = {}
    for key, tensor in state.items():
        path, _, parameter = key.rpartition(".")
        if path not in names:
            raise MixshowError(f"its UNet has a module '{path}' that no Stable Diffusion 1.x, 2.x or XL has")
        # Of the two names of an upsampler the first counts the attention of its block, the last does not.
        attends = hasattr(unet.get_submodule(".".join(path.split(".")[:2])), "attentions")
        found[f"{names[path][0 if attends else -1]}.{parameter}"] = tensor
    return found


def vae_tensors(vae: AutoencoderKL, state: State) -> dict[str, Tensor]:
    """An autoencoder's state dict under the original names; its attention is made of 1x1 convolutions there."""
    last = len(vae.config.block_out_channels) - 1
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"down_blocks\.(\d+)\.resnets\.(\d+)", lambda at: f"down.{at[1]}.block.{at[2]}"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", lambda at: f"down.{at[1]}.downsample"),
        (r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda at: f"up.{last - int(at[1])}.block.{at[2]}"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda at: f"up.{last - int(at[1])}.upsample"),
        (r"mid_block\.resnets\.(\d+)", lambda at: f"mid.block_{int(at[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", lambda _: "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", lambda _: "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", lambda at: f"mid.attn_1.{at[1]}"),
        (r"conv_shortcut", lambda _: "nin_shortcut"),
        (r"conv_norm_out", lambda _: "norm_out"),
    ]
    found = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor[:, :, None, None] if ".attn_1." in name and tensor.dim() == 2 else tensor
    return found


def clip_tensors(state: State) -> dict[str, Tensor]:
    """A text encoder's state dict under the names of OpenAI's CLIP in transformers 4."""
    return {f"{_TEXT_MODEL}{name.removeprefix(_TEXT_MODEL)}": tensor for name, tensor in state.items()}


_OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_INSIDE = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}  # fmt: skip


def open_clip_tensors(state: State, *, layers: int, last_left_out: bool = False) -> dict[str, Tensor]:
    """A text encoder's state dict under OpenCLIP's names, with queries, keys and values in one matrix.

    Args:
        layers: how many it has.
        last_left_out: the original has one more, which nothing reads; the last that there is stands in for it.
    """
    own = {name.removeprefix(_TEXT_MODEL): tensor for name, tensor in state.items()}
    found = {theirs: own[ours] for ours, theirs in _OUTSIDE.items()}
    for layer in range(layers + last_left_out):
        ours, theirs = f"encoder.layers.{min(layer, layers - 1)}", f"transformer.resblocks.{layer}"
        for part in ("weight", "bias"):
            joined = [own[f"{ours}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            found[f"{theirs}.attn.in_proj_{part}"] = torch.cat(joined)
            found |= {f"{theirs}.{other}.{part}": own[f"{ours}.{name}.{part}"] for name, other in _INSIDE.items()}
    if "text_projection.weight" in own:
        found["text_projection"] = own["text_projection.weight"].T
    return found
