"""The shape of a base, asked of the model: layers, widths, token and latent geometry."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from mixshow.models.base import Base


@dataclasses.dataclass(frozen=True)
class Topology:
    """Everything the rest of the code would otherwise have to remember.

    Attributes:
        cross_attention: module paths of the UNet's cross-attention layers in the order down, mid, up; the index in
            this tuple is the layer number of layer-wise embeddings.
        text_width: width of the text states; with two text encoders theirs together.
        max_tokens: length prompts are padded to, start and end token included.
        latent_channels: channels of a latent.
        latent_factor: pixels of the picture per latent position, along each side.
        size_multiple: a picture's sides must be multiples of this many pixels (every down block halves exactly).
        sample_size: the UNet's native side in latent positions.
    """

    cross_attention: tuple[str, ...]
    text_width: int
    max_tokens: int
    latent_channels: int
    latent_factor: int
    size_multiple: int
    sample_size: int

    @property
    def layers(self) -> int:
        """Number of cross-attention layers."""
        return len(self.cross_attention)

    def fingerprint(self) -> str:
        """A short hash of the shape; concepts trained on one fingerprint load on bases with the same."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:12]


def describe(base: Base) -> Topology:
    """Ask a base for its topology."""
    unet, vae = base.unet, base.vae
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return Topology(
        cross_attention=cross_attention_layers(unet),
        text_width=sum(base.text_widths),
        max_tokens=min(
            *(tokenizer.model_max_length for tokenizer in base.tokenizers.values()),
            *(encoder.config.max_position_embeddings for encoder in base.text_encoders.values()),
        ),
        latent_channels=unet.config.in_channels,
        latent_factor=factor,
        size_multiple=size_multiple(len(unet.config.block_out_channels), len(vae.config.block_out_channels)),
        sample_size=unet.config.sample_size,
    )


def size_multiple(unet_blocks: int, vae_blocks: int) -> int:
    """What a picture's sides must be multiples of, in pixels: all blocks of both but the last one halve it."""
    return int(2 ** (unet_blocks - 1 + vae_blocks - 1))


def cross_attention_layers(unet: nn.Module) -> tuple[str, ...]:
    """Paths of the cross-attention modules in forward order: down, mid, up (`named_modules` has mid last)."""
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    unet = getattr(unet, "_orig_mod", unet)  # what torch.compile wraps has its modules under another path
    names = [
        name
        for name, module in unet.named_modules()
        if getattr(module, "is_cross_attention", False) and name.split(".")[0] in order
    ]
    return tuple(sorted(names, key=lambda name: order[name.split(".")[0]]))  # a stable sort keeps each part's order


def self_attention_layers(unet: nn.Module) -> tuple[str, ...]:
    """Paths of the attention modules in which the positions of a picture attend to each other."""
    return tuple(
        name
        for name, module in unet.named_modules()
        if getattr(module, "is_cross_attention", None) is False and getattr(module, "group_norm", None) is None
    )


def residual_streams(unet: nn.Module) -> dict[str, str]:
    """By path of the layers whose outputs are added to a stream as they are, the module that reads this stream.

    The module is one that runs before the layer and whose first input is what the output will be added to.
    """
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    found: dict[str, str] = {}
    for path, module in unet.named_modules():
        if isinstance(module, Transformer2DModel):
            found[f"{path}.proj_out"] = path
        elif isinstance(module, BasicTransformerBlock) and module.norm_type == "layer_norm":
            found |= {f"{path}.attn1.to_out.0": f"{path}.norm1", f"{path}.attn2.to_out.0": f"{path}.norm2"}
            found[f"{path}.ff.net.2"] = f"{path}.norm3"
    known = {path for path, _ in unet.named_modules()}
    return {layer: stream for layer, stream in found.items() if {layer, stream} <= known}
