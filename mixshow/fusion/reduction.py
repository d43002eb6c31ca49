"""Layers whose inputs are kept as rows, solved in the rows' span: exact, and no matrix has the size of the input.

Where all inputs X_i are rows, fewer together than they are wide, let Q be orthonormal columns that span them. What a
change does outside that span no term but the ridge feels, so that the minimiser is D = E Q^T, and E solves the same
problem with inputs X_i Q and changes D_i Q, whatever the solver. Moments that are shrunk towards their diagonals, which
belong to the inputs' own axes, are formed instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.fusion.deltas import Deltas, widened
from mixshow.fusion.members import Changes
from mixshow.fusion.statistics import LayerInputs, LayerStatistics
from mixshow.fusion.wide import KeptRows

_PROBES, _ORTHONORMAL = 8, 1e-9  # vectors that a basis is tried on, and by how much it may change them


@dataclasses.dataclass(frozen=True, eq=False)
class CommonSpan:
    """What rows of all inputs of a layer span.

    Attributes:
        basis: orthonormal columns, `[in, rows]`.
        coordinates: of each input's kept rows in terms of it, `[kept, rows]`.
    """

    basis: Tensor
    coordinates: Sequence[Tensor]

    def formed(self, inputs: Sequence[LayerInputs]) -> list[LayerInputs]:
        """The inputs' statistics in terms of the basis."""
        found: list[LayerInputs] = []
        for each, own in zip(inputs, self.coordinates, strict=True):
            share = each.rows / max(len(own), 1)
            found.append(LayerStatistics(share * (own.mT @ own), each.rows, each.resolution))
        return found


def common_span(name: str, inputs: Sequence[LayerInputs]) -> CommonSpan | None:
    """What all inputs span; None where they are not all rows, or too many.

    Args:
        name: of the layer, for messages.

    Raises:
        MixshowError: rows with values that are no numbers.
    """
    rows = [each.kept.double() for each in inputs if isinstance(each, KeptRows)]
    if not all(bool(each.isfinite().all()) for each in rows):
        raise MixshowError(
            f"'{name}': its inputs hold values that are no numbers; the model overflows on these prompts, or the "
            "statistics are damaged; record them again in float32"
        )
    if len(rows) < len(inputs) or sum(len(each) for each in rows) >= rows[0].shape[1]:
        return None
    basis, coordinates = _orthonormal(torch.cat(rows))
    return CommonSpan(basis, coordinates.split([len(each) for each in rows]))


def _orthonormal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Columns Q `[in, rows]` and C `[rows, rows]` with `rows = C Q^T`.

    By the Cholesky factor of their products, which are few matrix products, where rows are independent enough (Golub
    and Van Loan 2013, 5.2.8: what is lost goes with their condition's square); otherwise by Householder's reflections.
    """
    coordinates, failed = torch.linalg.cholesky_ex(rows @ rows.mT)
    if not bool(failed):
        basis = torch.linalg.solve_triangular(coordinates, rows, upper=False).mT
        probes = torch.randn(len(rows), _PROBES, generator=torch.Generator().manual_seed(0), dtype=rows.dtype).to(rows)
        if float((basis.mT @ (basis @ probes) - probes).norm()) < _ORTHONORMAL * float(probes.norm()):
            return basis, coordinates
    basis, transposed = torch.linalg.qr(rows.mT)
    return basis, transposed.mT


def formed(inputs: LayerInputs) -> LayerInputs:
    """Statistics with the moment of what is kept as rows."""
    return LayerStatistics(inputs.moment, inputs.rows, inputs.resolution) if isinstance(inputs, KeptRows) else inputs


class ReducedChanges(Changes):
    """A member's changes as `D_i Q`, still formed when they are asked for and factors where they have a low rank."""

    def __init__(self, changes: Changes, basis: Tensor) -> None:
        super().__init__(changes._active)
        self._basis = basis

    def __getitem__(self, path: str) -> Tensor:
        return reduced_change(super().__getitem__(path), self._basis)

    def only(self, paths: Iterable[str]) -> ReducedChanges:
        return ReducedChanges(super().only(paths), self._basis)

    def columns(self, path: str) -> int:
        return self._basis.shape[1]

    def factors(self, path: str) -> tuple[Tensor, Tensor] | None:
        found = super().factors(path)
        return None if found is None else (found[0], reduced_change(found[1], self._basis))


def reduced(deltas: Deltas, basis: Tensor) -> Deltas:
    """One concept's changes in terms of a basis of the inputs' span."""
    if isinstance(deltas, Changes):
        return ReducedChanges(deltas, basis)
    return {name: reduced_change(delta, basis) for name, delta in deltas.items()}


def reduced_change(change: Tensor, basis: Tensor) -> Tensor:
    """`D_i Q` of a change in the shape of its weight, with a bias's column or without."""
    return widened(change, len(basis)).to(basis) @ basis


def whole_metric(matrix: Tensor, ridge: float, basis: Tensor) -> Tensor:
    """S, `[in, in]`, of the reduced one: outside the span it is the ridge alone."""
    return basis @ (matrix - ridge * torch.eye(len(matrix)).to(matrix)) @ basis.mT + ridge * torch.eye(len(basis)).to(
        matrix
    )
