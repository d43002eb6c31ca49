"""Layers whose inputs are kept as rows, solved in the rows' span: exact, and no matrix has the size of the input.

Where all inputs X_i are rows, fewer together than they are wide, let Q be orthonormal columns that span them. What a
change does outside that span no term but the ridge feels, so that the minimiser is D = E Q^T, and E solves the same
problem with inputs X_i Q and changes D_i Q, whatever the solver. Moments that are shrunk towards their diagonals, which
belong to the inputs' own axes, are formed instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.fusion.deltas import Deltas, widened
from mixshow.fusion.members import Changes
from mixshow.fusion.statistics import LayerInputs, LayerStatistics
from mixshow.fusion.wide import KeptRows


def common_basis(name: str, inputs: Sequence[LayerInputs]) -> Tensor | None:
    """Orthonormal columns `[in, rows]` that span all inputs; None where they are not all rows, or too many.

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
    return torch.linalg.qr(torch.cat(rows).mT).Q


def formed(inputs: LayerInputs, basis: Tensor | None = None) -> LayerInputs:
    """Statistics with the moment of what is kept as rows: of the inputs, or in terms of a basis that spans them."""
    if not isinstance(inputs, KeptRows):
        return inputs
    if basis is None:
        return LayerStatistics(inputs.moment, inputs.rows, inputs.resolution)
    hidden = inputs.factor @ basis
    return LayerStatistics(inputs.rows * (hidden.mT @ hidden), inputs.rows, inputs.resolution)


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
