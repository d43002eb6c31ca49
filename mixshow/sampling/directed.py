"""Networks that act in some regions of a picture only.

A network's change of a layer's output counts at every position by the part of it that the network's regions have:

    out = base + g * (changed - base),    g = sum_r m_r f_r (1 - b_r)

with the shares m_r, base ratios b_r and factors of the step f_r of regional attention, so that a network acts where,
and as far as, its regions' own prompts do. The base's own path is untouched; algorithms that are not additive in the
weight (DoRA, OFT) are gated on outputs just the same.

Keys and values of cross-attention belong to prompts, not to positions: the texts of its regions have them with the
network in full. Its part of the text encoders acts while these texts are encoded. Layers without positions (of the time
embedding) stay as they are, unless the network's regions are the whole picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.lycoris import Network
from mixshow.lycoris.carrier import Gate
from mixshow.models import Base, cross_attention_layers
from mixshow.sampling.regional_attention import RegionPlan

_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class DirectedNetwork:
    """A network, not attached, and the numbers of the regions it acts in."""

    network: Network
    regions: frozenset[int]


def network_marks(networks: Sequence[DirectedNetwork], regions: int) -> list[Hashable]:
    """For each region the numbers of the networks that act in it, None where none does; see `RegionPlan`."""
    acting = [
        tuple(i for i, directed in enumerate(networks) if region in directed.regions) for region in range(regions)
    ]
    return [numbers or None for numbers in acting]


class Direction:
    """Lets the networks of a plan's regions act there and nowhere else."""

    def __init__(self, base: Base, plan: RegionPlan, networks: Sequence[DirectedNetwork]) -> None:
        """
        Args:
            plan: made with the `network_marks` of these networks.
        """
        self.base, self.plan, self.networks = base, plan, networks
        self._parts = [directed.network.parts() for directed in networks]
        self._of_prompts: set[nn.Module] = {
            base.unet.get_submodule(f"{path}.{name}")
            for path in cross_attention_layers(base.unet)
            for name in ("to_k", "to_v")
        }

    @contextmanager
    def encoding(self, mark: Hashable) -> Iterator[None]:
        """The text encoders as the regions with a mark read their prompts."""
        with Attachment() as attached:
            for number in mark if isinstance(mark, tuple) else ():
                for name in self.base.text_encoders:
                    if name in self._parts[number]:
                        attached.add(self._parts[number][name].attach().detach)
            yield

    def attach(self) -> Attachment:
        """Direct the networks in the UNet until the handle is detached."""
        attachment = Attachment()
        try:
            for number, parts in enumerate(self._parts):
                if "unet" in parts:
                    parts["unet"].gate = self._gate(number)
                    attachment.add(parts["unet"].attach().detach)
        except BaseException:
            attachment.detach()
            raise
        return attachment

    def _gate(self, number: int) -> Gate:
        def gate(module: nn.Module, output: Tensor) -> Tensor | float:
            if module in self._of_prompts:
                return self._by_text(number, output)
            if output.dim() == 4:
                return self._by_position(number, (output.shape[2], output.shape[3]), output)[:, None]
            if output.dim() == 3:
                return self._by_position(number, self.plan.grid(output.shape[1]), output).flatten(1)[..., None]
            return self._everywhere(number)

        return gate

    def _by_text(self, number: int, output: Tensor) -> Tensor:
        """Of keys or values `[halves * texts, tokens, width]`: 1 for the texts of the network's regions."""
        own = [isinstance(mark, tuple) and number in mark for mark in self.plan.marks]
        return torch.tensor(own, device=output.device).to(output).repeat(len(output) // len(own))[:, None, None]

    def _by_position(self, number: int, grid: tuple[int, int], output: Tensor) -> Tensor:
        """What the change counts by, `[1, rows, columns]`."""
        key = ("gate", number, grid, self.plan.own_parts, output.device, output.dtype)
        return self.plan.once(key, lambda: self._gates(number, *grid)[None].to(output))

    def _gates(self, number: int, rows: int, columns: int) -> Tensor:
        parts = torch.tensor(self.plan.own_parts, dtype=torch.float64)[:, None, None]
        return (parts * self.plan.shares(rows, columns)[1:])[sorted(self.networks[number].regions)].sum(0)

    def _everywhere(self, number: int) -> float:
        """1 where the network's regions are the whole picture, 0 otherwise."""
        width, height = self.plan.size
        key = ("everywhere", number, self.plan.own_parts)
        return self.plan.once(key, lambda: float((self._gates(number, height, width) > 1 - _ROUNDING).all()))
