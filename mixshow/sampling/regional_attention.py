"""Regional cross-attention: every position of a picture attends to the prompts of the regions that cover it.

For regions with shares m_r of a position (see `region_shares`) and base ratios b_r:

    out = sum_r m_r [(1 - b_r) A(q, K_r, V_r) + b_r A(q, K_base, V_base)]
          + (1 - sum_r m_r) A(q, K_background, V_background)

which is a weighted sum of attentions to distinct texts; at a step where a region acts only in part, by a factor f, its
(1 - b_r) is f (1 - b_r). Only the positions a text has weight at are computed, for all texts in one call; hard boxes
therefore cost little more than one prompt. The idea is Mix-of-Show's (arXiv 2305.18292).
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
from mixshow.models import Base, PromptReading, PromptStates, cross_attention_layers, read_prompts
from mixshow.sampling.regions import Edges, Region, averaged_shares, region_shares

_AS_WRITTEN = PromptReading()


@dataclasses.dataclass(frozen=True)
class _Routing:
    """Which positions attend to which texts, at one resolution.

    Attributes:
        texts: `[used]`, the texts that have any position here.
        take: `[used * longest]`, for each of them its positions, filled up to the longest list.
        put: `[positions * cover]`, where in `take` each position's results are.
        weight: `[positions, cover, 1]`, or None when each position has one text with weight 1.
    """

    texts: Tensor
    take: Tensor
    put: Tensor
    weight: Tensor | None

    @classmethod
    def of(cls, weights: Tensor) -> _Routing:
        """From weights `[texts, positions]`."""
        texts = weights.any(1).nonzero()[:, 0]
        weights = weights[texts]
        active = weights > 0
        longest, cover = int(active.sum(1).max()), int(active.sum(0).max())
        text, position = active.nonzero(as_tuple=True)
        place = text * longest + (active.cumsum(1) - 1)[text, position]
        rank = (active.cumsum(0) - 1)[text, position]
        positions = weights.shape[1]
        take = torch.zeros(len(texts) * longest, dtype=torch.long)
        take[place] = position
        put = torch.zeros(positions, cover, dtype=torch.long)
        put[position, rank] = place
        weight = torch.zeros(positions, cover, dtype=torch.float64)
        weight[position, rank] = weights[text, position]
        return cls(texts, take, put.flatten(), None if cover == 1 else weight.float()[:, :, None])

    def to(self, device: torch.device) -> _Routing:
        weight = None if self.weight is None else self.weight.to(device)
        return _Routing(self.texts.to(device), self.take.to(device), self.put.to(device), weight)


class RegionPlan:
    """The texts of a scene and the weight each has at every position, for any resolution of the UNet."""

    def __init__(
        self,
        regions: Sequence[Region],
        prompt: str,
        negative_prompt: str,
        *,
        size: tuple[int, int],
        edges: Edges = Edges.HARD,
        base_prompt: str | None = None,
        schedule: Sequence[tuple[float, float]] = (),
    ) -> None:
        """
        Args:
            prompt: for what no region covers.
            size: (width, height) of the picture in pixels.
            base_prompt: for the regions' base ratios; None: the prompt.
            schedule: see `Scene`.
        """
        self.regions, self.size, self.edges = tuple(regions), size, edges
        background = (prompt, negative_prompt)
        own = [(region.prompt, region.negative_prompt) for region in regions]
        base = (prompt if base_prompt is None else base_prompt, negative_prompt)
        self.texts = list(dict.fromkeys([background, base, *own]))  # (prompt, negative prompt), the background's first
        self.base_text = self.texts.index(base)
        self._text_of = [self.texts.index(text) for text in own]
        self._schedule = sorted(schedule)
        self._strengths = (1.0,) * len(regions)  # of regions' own prompts at the step that is computed
        self._routings: dict[tuple[int, torch.device, tuple[float, ...]], _Routing] = {}
        self._maps: dict[tuple[int, int], Tensor] = {}  # soft shares of pixels and of each resolution's positions

    def begin_step(self, step: int, steps: int) -> None:
        """Weigh the texts as at step `step` of `steps`; before the first call all regions act."""
        factor = next((factor for start, factor in reversed(self._schedule) if start * steps <= step), 1.0)
        self._strengths = tuple(
            factor if region.span[0] * steps <= step < region.span[1] * steps else 0.0 for region in self.regions
        )

    def encode(self, base: Base, *, guided: bool, reading: PromptReading = _AS_WRITTEN) -> PromptStates:
        """States of `[halves, texts]`; negative prompts in the first half, if guided."""
        halves = [[negative for _, negative in self.texts]] if guided else []
        halves.append([prompt for prompt, _ in self.texts])
        states = read_prompts(base, [prompt for half in halves for prompt in half], reading)
        return states.unflattened(len(halves), len(self.texts))

    def weights(self, rows: int, columns: int) -> Tensor:
        """The weight of each text at each position at this step, `[texts, rows, columns]` in float64; sums to one."""
        background, *shares = self.shares(rows, columns)
        weights = torch.zeros(len(self.texts), rows, columns, dtype=torch.float64)
        weights[0] = background
        for region, text, strength, share in zip(self.regions, self._text_of, self._strengths, shares):
            own = strength * (1 - region.base_ratio)
            weights[text] += share * own
            weights[self.base_text] += share * (1 - own)
        return weights

    def shares(self, rows: int, columns: int) -> Tensor:
        """The share each region has of each position; see `region_shares`."""
        if self.edges is Edges.HARD or not self.regions:
            return region_shares(self.regions, rows, columns, self.size, self.edges)
        if (rows, columns) not in self._maps:
            pixels = (self.size[1], self.size[0])
            if not self._maps:
                self._maps[pixels] = region_shares(self.regions, *pixels, self.size, self.edges)
            finer = [shares for grid, shares in self._maps.items() if not (grid[0] % rows or grid[1] % columns)]
            source = min(finer, key=Tensor.numel, default=self._maps[pixels])
            self._maps[rows, columns] = averaged_shares(source, rows, columns)
        return self._maps[rows, columns]

    def routing(self, positions: int, device: torch.device) -> _Routing:
        """The routing of the layers that have so many positions, at this step."""
        key = (positions, device, self._strengths)
        if key not in self._routings:
            width, height = self.size
            rows = round(math.sqrt(positions * height / width))
            weights = self.weights(rows, positions // rows).flatten(1)
            self._routings[key] = _Routing.of(weights).to(device)
        return self._routings[key]


class _RegionalProcessor:
    """Attention processor of one cross-attention layer. It has the texts; the states the UNet passes are not read."""

    def __init__(self, plan: RegionPlan, states: Tensor) -> None:
        """
        Args:
            states: this layer's text states, `[halves, texts, tokens, width]`.
        """
        self.plan, self.states = plan, states
        self._keys_and_values: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        query = attn.to_q(hidden_states)
        if self._keys_and_values is None:  # texts do not change between steps
            self._keys_and_values = self._project(attn)
        attended = self._attend(attn, query)
        output = attn.to_out[1](attn.to_out[0](attended))
        if attn.residual_connection:
            output = output + hidden_states
        return output / attn.rescale_output_factor

    def _project(self, attn: Attention) -> tuple[Tensor, Tensor]:
        """Keys and values of all texts, each `[halves, texts, heads, tokens, head width]`."""
        states = self.states.flatten(0, 1)
        if attn.norm_cross is not None:
            states = attn.norm_encoder_hidden_states(states)
        key, value = (
            projection(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for projection in (attn.to_k, attn.to_v)
        )
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        return key.unflatten(0, self.states.shape[:2]), value.unflatten(0, self.states.shape[:2])

    def _attend(self, attn: Attention, query: Tensor) -> Tensor:
        """Attended values `[batch, positions, width]` of queries of that shape; a batch is halves times pictures."""
        routing = self.plan.routing(query.shape[1], query.device)
        key, value = (part.index_select(1, routing.texts).flatten(0, 1) for part in self._keys_and_values or ())
        halves, texts = len(self.states), len(routing.texts)
        pictures, longest = len(query) // halves, len(routing.take) // texts
        if texts > 1:
            query = query.index_select(1, routing.take)
        # Pictures share the texts: their positions stand in one row, so that keys need no copies.
        query = query.view(halves, pictures, texts, longest, attn.heads, -1).permute(0, 2, 4, 1, 3, 5)
        query = query.reshape(halves * texts, attn.heads, pictures * longest, -1)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        result = functional.scaled_dot_product_attention(query, key, value)
        result = result.view(halves, texts, attn.heads, pictures, longest, -1).permute(0, 3, 1, 4, 2, 5)
        result = result.reshape(halves * pictures, texts * longest, -1)
        if texts > 1:
            result = result.index_select(1, routing.put)
        if routing.weight is not None:
            positions, cover, _ = routing.weight.shape
            result = (result.view(len(result), positions, cover, -1) * routing.weight.to(result.dtype)).sum(2)
        return result


def regional_attention(unet: UNet2DConditionModel, plan: RegionPlan, states: Tensor) -> Attachment:
    """Let the cross-attention layers follow a plan; detaching gives the UNet its own processors back.

    Args:
        states: the plan's encoded texts, `[halves, texts, layers, tokens, width]`. Batches of the UNet must then be
            of as many halves, negative first. What else a UNet reads of prompts (XL) stays the batch's own.
    """
    attachment = Attachment()
    for layer, path in enumerate(cross_attention_layers(unet)):
        module = unet.get_submodule(path)
        own = module.processor
        attachment.add(lambda module=module, own=own: module.set_processor(own))  # type: ignore[misc]
        module.set_processor(_RegionalProcessor(plan, states[:, :, layer].to(unet.dtype)))
    return attachment
