"""A fused change as low-rank factors: exactly where it has a low rank, else truncated where its inputs feel it least.

With concepts D_i = U_i V_i the fused change is [U_1 .. U_n] times something, whatever the weights, anchor and ridge: n
concepts of rank r are fused into rank n * r without loss. Below that, of all changes of a rank the one nearest to D in
tr((D' - D) S (D' - D)^T), the objective's excess over its minimum, is D projected onto the leading eigenvectors of
D S D^T (Eckart and Young 1936, applied to D S^(1/2)).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixshow.fusion.fusion import FormedChanges, Fusion
from mixshow.fusion.members import Member
from mixshow.models import Base

_ROUNDING = 1e-6  # changes are formed in float32; what lies outside the concepts' directions by less is its rounding


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """A change `up @ down`.

    Attributes:
        up: `[out, rank]`, float64.
        down: `[rank, in]`.
        exact_rank: the rank that would lose nothing.
        lost: share of the outputs' squared change on the recorded inputs that the rank leaves out; of the squared
            weights' change where no inputs were recorded.
    """

    up: Tensor
    down: Tensor
    exact_rank: int
    lost: float

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    def rounded(self) -> Factors:
        """The factors as a float32 file has them."""
        return dataclasses.replace(self, up=self.up.float().double(), down=self.down.float().double())


def factorised(
    change: Tensor,
    directions: Tensor | None = None,
    metric: Tensor | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> Factors:
    """Factors of a change.

    Args:
        change: D, `[out, in]`.
        directions: columns whose span should hold the change's outputs, `[out, any]`; they are not used where it does
            not lie in it. None: unknown.
        metric: S, `[in, in]`; None: the identity.
        rank: at most this; None: as many as it takes.
        energy: no more than are needed to keep this share of what `Factors.lost` counts; None: all.
    """
    change = change.double()
    basis = _basis(change, directions)
    down = basis.mT @ change
    exact_rank = min(basis.shape[1], change.shape[1])
    if energy is None and (rank is None or rank >= exact_rank):
        if exact_rank < basis.shape[1]:  # fewer inputs than directions
            return Factors(*_balanced(change, torch.eye(exact_rank).to(change)), exact_rank, 0.0)
        return Factors(*_balanced(basis, down), exact_rank, 0.0)
    values, vectors = torch.linalg.eigh(down @ down.mT if metric is None else down @ metric.to(down) @ down.mT)
    values = values.flip(-1).clamp(min=0)
    kept = values.cumsum(-1) / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    count = exact_rank if energy is None else int((kept < energy).sum()) + 1
    count = min(count, exact_rank, exact_rank if rank is None else rank)
    vectors = vectors.flip(-1)[:, :count]
    return Factors(*_balanced(basis @ vectors, vectors.mT @ down), exact_rank, max(0.0, 1 - float(kept[count - 1])))


def _basis(change: Tensor, directions: Tensor | None) -> Tensor:
    """Orthonormal columns whose span holds a change's outputs, as few as are known."""
    out, width = change.shape
    if directions is not None and directions.shape[1] < out:
        basis = torch.linalg.qr(directions.to(change)).Q
        outside = change - basis @ (basis.mT @ change)
        if outside.norm() <= _ROUNDING * change.norm():
            return basis
    return torch.eye(out).to(change) if out <= width else torch.linalg.qr(change).Q


def _balanced(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with factors of equal norm, so that none gets lost in low precision."""
    ratio = (down.norm() / up.norm()).sqrt()
    return (up * ratio, down / ratio) if ratio > 0 else (up, down)


def directions_of(base: Base, members: Sequence[Member]) -> dict[str, Tensor | None]:
    """By module path the span `[out, ranks]` of all members' changed outputs; None where one has no low rank."""
    found: dict[str, Tensor | None] = {}
    for member in members:
        for path, own in member.output_directions(base).items():
            before = found.get(path)
            if path not in found:
                found[path] = own
            else:
                found[path] = None if own is None or before is None else torch.cat([before, own], dim=1)
    return found


def as_low_rank(
    base: Base, members: Sequence[Member], fusion: Fusion, *, rank: int | None = None, energy: float | None = None
) -> tuple[Fusion, dict[str, Factors]]:
    """A fusion of low-rank changes only, as a float32 file would hold them, and their factors by module path.

    Args:
        fusion: of weights only, without biases and normalisations; with `metrics` where it should be truncated in
            them, which the result does without.
        rank: at most this in every layer; None: exact.
        energy: see `factorised`.
    """
    known = {**directions_of(base, members), **fusion.directions}
    factors = {
        path: factorised(
            change.flatten(1), known.get(path), fusion.metrics.get(path), rank=rank, energy=energy
        ).rounded()
        for path, change in fusion.changes.items()
        if bool(change.any())
    }
    changes = FormedChanges({path: (each.up, each.down) for path, each in factors.items()})
    directions = {path: each.up for path, each in factors.items()}
    return dataclasses.replace(fusion, changes=changes, directions=directions, metrics={}), factors


def loss_report(factors: Mapping[str, Factors]) -> dict[str, Any]:
    """Ranks and losses as plain values."""
    lost = [each.lost for each in factors.values()]
    return {
        "rank": max((each.rank for each in factors.values()), default=0),
        "exact_rank": max((each.exact_rank for each in factors.values()), default=0),
        "exact": all(each.rank == each.exact_rank for each in factors.values()),
        "mean_lost": sum(lost) / max(len(lost), 1),
        "worst_lost": max(lost, default=0.0),
        "layers": {
            path: {"rank": each.rank, "exact_rank": each.exact_rank, "lost": each.lost}
            for path, each in factors.items()
        },
    }
