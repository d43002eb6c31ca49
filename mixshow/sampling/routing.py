"""Which positions attend to which texts, so that only these are computed, all in one call."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Routing:
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
    def of(cls, weights: Tensor) -> Routing:
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

    def to(self, device: torch.device) -> Routing:
        weight = None if self.weight is None else self.weight.to(device)
        return Routing(self.texts.to(device), self.take.to(device), self.put.to(device), weight)
