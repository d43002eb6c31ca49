"""Factors of a low-rank matrix in the form of a singular value decomposition, taken from a weight or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.lycoris.layer import fits


class Factors(NamedTuple):
    """`left @ diag(values) @ right`: `[out, r]`, `[r]`, `[r, in * kernel]`."""

    left: Tensor
    values: Tensor
    right: Tensor

    def towards(self, other: Factors) -> Factors:
        """The same product, the signs of singular vectors, which are arbitrary, chosen as in other factors near it."""
        agreement = (self.left * other.left).sum(0) + (self.right * other.right).sum(1)
        sign = torch.where(agreement < 0, -1.0, 1.0)
        return Factors(self.left * sign, self.values, self.right * sign[:, None])


def singular_factors(matrix: Tensor, rank: int, kind: str = "principal") -> Factors:
    """Singular vectors and values of a matrix in float32; those beyond its own are zero.

    Args:
        kind: which ones: principal (the largest), middle or last.

    Raises:
        MixshowError: unknown kind.
    """
    most = min(matrix.shape)
    first = {"principal": 0, "middle": (most - rank) // 2, "last": most - rank}
    if kind not in first:
        raise MixshowError(f"sig_type '{kind}': unknown{did_you_mean(kind, first)}")
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    start = max(first[kind], 0)
    chosen, missing = slice(start, start + rank), max(rank - most, 0)
    left, values, right = left[:, chosen].float(), values[chosen].float(), right[chosen].float()
    return Factors(F.pad(left, (0, missing)), F.pad(values, (0, missing)), F.pad(right, (0, 0, 0, missing)))


def factors_of(tensors: Mapping[str, Tensor], p: str, values: str, q: str, shape: tuple[int, ...]) -> Factors | None:
    """A file's factors for a weight of a shape; None: they are for another."""
    rank = tensors[values].numel()
    if not fits(tensors[p], (shape[0], rank)) or not fits(tensors[q], (rank, *shape[1:])):
        return None
    left, right = tensors[p].float().flatten(1), tensors[q].float().flatten(1)
    return Factors(left, tensors[values].float().flatten(), right)
