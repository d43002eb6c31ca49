"""Isolation: in self-attention, the positions of one region do not attend to those of another.

The idea is Bounded Attention's (arXiv 2403.16990). With the shares m_r of a position (see `region_shares`; m_0 is the
background's), a query p may attend to a key q by

    a(p, q) = m_0(p) + (1 - m_0(p)) m_0(q) + sum_r m_r(p) m_r(q)

of its probability, normalised again: wholly within a region and to the background, not at all from one region to
another. The background attends to everything: it must end where the characters begin, and what it takes from them is
light and ground that the picture shares. A single region is never changed.
"""

from __future__ import annotations

import dataclasses

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttentionProcessor
from torch import Tensor
from torch.nn import functional

from mixshow.core.attachment import Attachment
from mixshow.models import self_attention_layers
from mixshow.sampling.regional_attention import RegionPlan, finished


@dataclasses.dataclass(frozen=True)
class Isolation:
    """How far, and when, regions are kept apart.

    Attributes:
        strength: 1: not at all from one region to another; 0: as if there was no isolation.
        span: part of the steps, from 0.0 (first) to 1.0 (last).
    """

    strength: float = 1.0
    span: tuple[float, float] = (0.0, 1.0)

    def weights(self, shares: Tensor) -> Tensor:
        """By how much positions may attend to positions, `[positions, positions]`, float32, 0 to 1.

        Args:
            shares: `[1 + regions, positions]`, the background's first.
        """
        background, regions = shares[0].float(), shares[1:].float()
        allowed = background[:, None] + (1 - background)[:, None] * background + regions.T @ regions
        return (1 - self.strength * (1 - allowed)).clamp(0, 1)


class IsolatedRegions:
    """The isolation of one plan's regions, at the step that is computed."""

    def __init__(self, plan: RegionPlan, isolation: Isolation) -> None:
        self.plan, self.isolation = plan, isolation
        self._acts = isolation.span[0] == 0

    def begin_step(self, step: int, steps: int) -> None:
        """As at step `step` of `steps`; before the first call as at the first step."""
        self._acts = self.isolation.span[0] * steps <= step < self.isolation.span[1] * steps

    def attach(self, unet: UNet2DConditionModel) -> Attachment:
        """Isolate in all self-attention layers until the handle is detached; then the UNet has its own processors."""
        attachment = Attachment()
        for path in self_attention_layers(unet):
            module = unet.get_submodule(path)
            own = module.processor
            attachment.add(lambda module=module, own=own: module.set_processor(own))  # type: ignore[misc]
            module.set_processor(_IsolatedProcessor(self, own))
        return attachment

    def act(self, positions: int) -> bool:
        """Whether anything is isolated at this step in layers that have so many positions."""
        if not self._acts or not self.isolation.strength:
            return False
        return self.plan.once(("isolated", positions), lambda: int(self._shares(positions)[1:].any(1).sum()) > 1)

    def bias(self, positions: int, like: Tensor) -> Tensor:
        """What is added to attention's logits, `[positions, positions]`."""
        key = ("isolation", self.isolation.strength, positions, like.device, like.dtype)
        return self.plan.once(
            key, lambda: self.isolation.weights(self._shares(positions).to(like.device)).log().to(like.dtype)
        )

    def _shares(self, positions: int) -> Tensor:
        return self.plan.shares(*self.plan.grid(positions)).flatten(1)


class _IsolatedProcessor:
    """Attention processor of one self-attention layer; the layer's own one wherever nothing is isolated."""

    def __init__(self, regions: IsolatedRegions, own: AttentionProcessor) -> None:
        self.regions, self.own = regions, own

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        positions = hidden_states.shape[1]
        if not self.regions.act(positions):
            return self.own(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        query, key, value = (
            projection(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection in (attn.to_q, attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        attended = functional.scaled_dot_product_attention(query, key, value, self.regions.bias(positions, query))
        return finished(attn, attended.transpose(1, 2).flatten(2), hidden_states)
