"""Regional cross-attention: every position of a picture attends to the prompts of the regions that cover it.

For regions with shares m_r of a position (see `region_shares`) and base ratios b_r:

    out = sum_r m_r [(1 - b_r) A(q, K_r, V_r) + b_r A(q, K_base, V_base)]
          + (1 - sum_r m_r) A(q, K_background, V_background)

which is a weighted sum of attentions to distinct texts; at a step where a region acts only in part, by a factor f, its
(1 - b_r) is f (1 - b_r). Only the positions a text has weight at are computed, for all texts in one call; hard boxes
therefore cost little more than one prompt. The idea is Mix-of-Show's (arXiv 2305.18292).
"""

from __future__ import annotations

from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional

from mixshow.core.attachment import Attachment
from mixshow.models import cross_attention_layers
from mixshow.sampling.guard import TokenGuard
from mixshow.sampling.region_plan import RegionPlan
from mixshow.sampling.routing import Routing
from mixshow.sampling.sought import Sought

__all__ = ["RegionPlan", "Watcher", "finished", "regional_attention"]


class Watcher(Protocol):
    """Whatever looks at queries and keys while it is `watching`; see `AttentionSearch`."""

    @property
    def watching(self) -> bool: ...

    def watch(self, attn: Attention, query: Tensor, key: Tensor) -> None: ...


class _RegionalProcessor:
    """Attention processor of one cross-attention layer. It has the texts; the states the UNet passes are not read."""

    def __init__(
        self, plan: RegionPlan, states: Tensor, guard: TokenGuard | None = None, watcher: Watcher | None = None
    ) -> None:
        """
        Args:
            states: this layer's text states, `[halves, texts, tokens, width]`.
        """
        self.plan, self.states, self.guard, self.watcher = plan, states, guard, watcher
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
        if self.watcher is not None and self.watcher.watching:
            self.watcher.watch(attn, query, self._keys_and_values[0])
        attended = self._attend(attn, query)
        return finished(attn, attended, hidden_states)

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
        positions = query.shape[1]
        routing = self.plan.routing(positions, query.device)
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
        bias = self._bias(query, positions, routing)
        result = functional.scaled_dot_product_attention(query, key, value, bias)
        result = result.view(halves, texts, attn.heads, pictures, longest, -1).permute(0, 3, 1, 4, 2, 5)
        result = result.reshape(halves * pictures, texts * longest, -1)
        if texts > 1:
            result = result.index_select(1, routing.put)
        if routing.weight is not None:
            cover = routing.weight.shape[1]
            result = (result.view(len(result), positions, cover, -1) * routing.weight.to(result.dtype)).sum(2)
        return result

    def _bias(self, query: Tensor, positions: int, routing: Routing) -> Tensor | None:
        """What the guard adds to the logits of queries, `[halves * texts, 1, queries, tokens]`; None: nothing."""
        guard = self.guard
        if guard is None:
            return None

        def make() -> Tensor | None:
            shares = self.plan.shares(*self.plan.grid(positions))[1:].flatten(1)
            sought = [number for number, region in enumerate(self.plan.regions) if isinstance(region.area, Sought)]
            bias = guard.without(sought).bias(shares, routing.texts.cpu(), routing.take.cpu())
            if bias is None:
                return None
            unguarded = [torch.zeros_like(bias)] * (
                len(self.states) - 1
            )  # negative prompts lead away, they draw nothing
            pictures = query.shape[2] // bias.shape[1]
            return torch.cat([*unguarded, bias])[:, None].repeat(1, 1, pictures, 1).to(query)

        key = ("guard", positions, self.plan.strengths, query.shape[2], query.device, query.dtype)
        return self.plan.once(key, make)


def finished(attn: Attention, attended: Tensor, hidden_states: Tensor) -> Tensor:
    """A layer's output, from attended values and its input."""
    output = attn.to_out[1](attn.to_out[0](attended))
    if attn.residual_connection:
        output = output + hidden_states
    return output / attn.rescale_output_factor


def regional_attention(
    unet: UNet2DConditionModel,
    plan: RegionPlan,
    states: Tensor,
    guard: TokenGuard | None = None,
    watcher: Watcher | None = None,
) -> Attachment:
    """Let the cross-attention layers follow a plan; detaching gives the UNet its own processors back.

    Args:
        states: the plan's encoded texts, `[halves, texts, layers, tokens, width]`. Batches of the UNet must then be
            of as many halves, negative first. What else a UNet reads of prompts (XL) stays the batch's own.
        guard: keeps regions' concept tokens to their regions.
        watcher: shown queries and keys; batches must then be of one picture.
    """
    attachment = Attachment()
    for layer, path in enumerate(cross_attention_layers(unet)):
        module = unet.get_submodule(path)
        own = module.processor
        attachment.add(lambda module=module, own=own: module.set_processor(own))  # type: ignore[misc]
        module.set_processor(_RegionalProcessor(plan, states[:, :, layer].to(unet.dtype), guard, watcher))
    return attachment
