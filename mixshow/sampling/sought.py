"""The area of a region that is still to be found from attention (`sampling/found.py`)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mixshow.sampling.regions import Edges


@dataclasses.dataclass(frozen=True)
class Sought:
    """An area that is not known yet; until it is, it covers nothing.

    Attributes:
        threshold: part of the largest value of its map from which on a position is inside, 0 to 1.
        after: steps after which it is fixed.
        feather: see `Feathered`; 0: none.
    """

    threshold: float
    after: int
    feather: float = 0.0

    def problem(self, size: tuple[int, int]) -> str | None:
        """See `Area`."""
        return None

    def coverage(self, rows: int, columns: int, size: tuple[int, int], edges: Edges) -> Tensor:
        """See `Area`."""
        return torch.zeros(rows, columns, dtype=torch.float64)
