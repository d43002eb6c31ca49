"""Mix-of-Show's regional attention as it works, to compare with: written from its description, not from its code.

Text of the scene and of each region is encoded for every layer, each text by itself. At every step every
cross-attention layer attends to the scene's prompt everywhere; then a loop over the regions cuts each one's queries
out, projects its text's keys and values again, attends, and adds the result to a canvas; where regions cover a position
the canvas, divided by how many do, is taken instead. Attention itself is torch's fused one, as in mixshow's processors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional

from mixshow.core.attachment import Attachment
from mixshow.models import Base, cross_attention_layers
from mixshow.models.prompts import text_states
from mixshow.sampling.regions import PixelBox


@dataclasses.dataclass(frozen=True)
class PublishedRegion:
    """A box and its text for every layer, `[halves, layers, tokens, width]`, negative first."""

    box: PixelBox
    states: Tensor


@torch.no_grad()
def encode_by_layer(base: Base, prompt: str, negative_prompt: str) -> Tensor:
    """A prompt encoded for every layer, whether it has concept tokens or not; the negative one once.

    Returns:
        `[halves, layers, tokens, width]`, negative first.
    """
    layers = base.topology.layers
    towards = text_states(base, [base.vocabulary.bind(prompt, layer) for layer in range(layers)]).states
    away = text_states(base, [negative_prompt]).states.expand(layers, -1, -1)
    return torch.stack([away, towards])


class _PublishedProcessor:
    def __init__(self, regions: Sequence[PublishedRegion], layer: int, size: tuple[int, int]) -> None:
        self.regions, self.layer, self.size = regions, layer, size

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query = attn.to_q(hidden_states)
        everywhere = _attended(attn, query, encoder_hidden_states)
        width, height = self.size
        rows = round(math.sqrt(query.shape[1] * height / width))
        grid = query.unflatten(1, (rows, -1))
        canvas, count = torch.zeros_like(grid), torch.zeros_like(grid[..., :1])
        for region in self.regions:
            place = _cells(region.box, grid.shape[1:3], self.size)
            cut = grid[:, place[0], place[1]]
            if cut.numel() == 0:
                continue
            states = region.states[:, self.layer].to(query.dtype)
            result = _attended(attn, cut.flatten(1, 2), states.repeat_interleave(len(query) // len(states), 0))
            canvas[:, place[0], place[1]] += result.unflatten(1, cut.shape[1:3])
            count[:, place[0], place[1]] += 1
        inside = canvas / count.clamp(min=1)
        result = torch.where(count > 0, inside, everywhere.unflatten(1, (rows, -1))).flatten(1, 2)
        return attn.to_out[1](attn.to_out[0](result)) / attn.rescale_output_factor


def _cells(box: PixelBox, grid: Sequence[int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns that lie wholly inside a box."""
    down, across = grid[0] / size[1], grid[1] / size[0]
    rows = slice(math.ceil(box.top * down), math.floor(box.bottom * down))
    return rows, slice(math.ceil(box.left * across), math.floor(box.right * across))


def _attended(attn: Attention, query: Tensor, states: Tensor | None) -> Tensor:
    """Attention of `[batch, positions, width]` queries to states, keys and values projected here."""
    key, value = attn.to_k(states), attn.to_v(states)
    query, key, value = (part.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def published_attention(
    unet: UNet2DConditionModel, regions: Sequence[PublishedRegion], size: tuple[int, int]
) -> Attachment:
    """Let the cross-attention layers work as published; detaching gives the UNet its own processors back."""
    attachment = Attachment()
    for layer, path in enumerate(cross_attention_layers(unet)):
        module = unet.get_submodule(path)
        own = module.processor
        attachment.add(lambda module=module, own=own: module.set_processor(own))  # type: ignore[misc]
        module.set_processor(_PublishedProcessor(regions, layer, size))
    return attachment
