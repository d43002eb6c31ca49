"""A layer problem whose inputs are of one model and whose wanted outputs of another, at the same points of pictures.

With z what a layer reads in the fused model, and e what its output there lacks without a change, the change D of the
layer minimises

    sum_i w_i E |D z - e|^2  +  mu E_b |D z - e|^2  +  lambda ||D||^2

over each concept's rows and those of ordinary captions. With G_i = E z z^T and C_i = E e z^T that is the quadratic form
of S = sum_i w_i G_i + mu G_b + lambda I and B = sum_i w_i C_i + mu C_b, so every solver takes it. With e = D_i z it is
`problem.py`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.fusion.layers import Layer
from mixshow.fusion.problem import LayerProblem, Measured, quadratic
from mixshow.fusion.statistics import SINGLE_RESOLUTION, LayerStatistics, input_parts, is_elementwise, second_moment


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Rows of inputs and wanted changes of outputs, summed up.

    Attributes:
        inputs: their second moment.
        wanted: `sum e z^T`, `[out, in]`, of a normalisation `[channels, 1, in]`, float64.
        square: `sum |e|^2`.
    """

    inputs: LayerStatistics
    wanted: Tensor
    square: float

    @property
    def rows(self) -> int:
        return max(self.inputs.rows, 1)

    def within(self, basis: Tensor) -> Pairs:
        """With outputs in coordinates of orthonormal columns `[out, rank]`; the square stays that of whole outputs."""
        return dataclasses.replace(self, wanted=basis.mT @ self.wanted)

    def residual(self, change: Tensor) -> float:
        """Mean square of what is still lacking at D, in the shape of `wanted`."""
        square = quadratic(change, self.inputs.moment) - 2 * float((change * self.wanted).sum()) + self.square
        return max(square, 0.0) / self.rows


@dataclasses.dataclass(eq=False)
class RunningPairs:
    """Running sums of one set's pairs: moments of inputs, products with wanted changes, rows and squares."""

    moment: Tensor
    wanted: Tensor
    counts: Tensor

    @classmethod
    def zeros(cls, shape: tuple[int, ...], device: torch.device) -> Self:
        """Of nothing yet, with products in the shape of `Pairs.wanted`."""
        width = shape[-1]
        moment = (*shape[:-2], width, width)
        return cls(*(torch.zeros(each, dtype=torch.float64, device=device) for each in (moment, shape, (2,))))

    def add(self, layer: Layer, x: Tensor, lacking: Tensor, *, moments: bool) -> None:
        """Take inputs and what outputs lack into account, products in float32."""
        elementwise, count = is_elementwise(layer.module), 0
        wanted = output_rows(layer.module, lacking).float()
        for rows in input_parts(layer.module, x.float()):
            own = wanted[count : count + len(rows)]
            count += len(rows)
            if moments:
                self.moment += second_moment(rows, elementwise=elementwise, extended=layer.extended)
            if elementwise:
                columns = rows.T[..., None]
                columns = F.pad(columns, (0, 1), value=1.0) if layer.extended else columns
                self.wanted += own.T[:, None] @ columns
            else:
                self.wanted += own.T @ (F.pad(rows, (0, 1), value=1.0) if layer.extended else rows)
        self.counts += torch.stack([self.counts.new_tensor(count), wanted.double().square().sum()])

    def pairs(self, known: LayerStatistics | None) -> Pairs:
        """What was summed up; of inputs that are known already, with these."""
        rows, square = self.counts.tolist()
        return Pairs(known or LayerStatistics(self.moment, int(rows), SINGLE_RESOLUTION), self.wanted, square)


def output_rows(module: nn.Module, y: Tensor) -> Tensor:
    """A module's output as rows `[rows, out]`, in the order of `input_rows`."""
    channels_first = isinstance(module, (nn.Conv2d, nn.GroupNorm))
    return (y.movedim(1, -1) if channels_first else y).flatten(0, -2)


@dataclasses.dataclass(frozen=True, eq=False)
class PairedProblem(LayerProblem):
    """One layer to fuse, by pairs. Moments are not shrunk.

    Attributes:
        pairs: one per concept, of the same inputs as `inputs`.
        anchor: of ordinary captions; None where nothing is anchored.
    """

    pairs: Sequence[Pairs]
    anchor: Pairs | None = None

    @cached_property
    def target(self) -> Tensor:
        """B, `[out, in]`, float64."""
        return torch.stack([weight / each.rows * each.wanted for weight, each in self._weighted]).sum(0)

    @cached_property
    def unchanged(self) -> Measured:
        """`measured` at D = 0."""
        return self._measured(torch.zeros_like(self.target))

    @staticmethod
    def measured_together(problems: Sequence[PairedProblem], changes: Sequence[Tensor]) -> list[Measured]:
        """See `LayerProblem`."""
        return [problem._measured(change) for problem, change in zip(problems, changes)]

    @property
    def _weighted(self) -> list[tuple[float, Pairs]]:
        anchor = [] if self.anchor is None else [(self.inputs.anchor_weight, self.anchor)]
        return [*zip(self.inputs.weights, self.pairs), *anchor]

    def _measured(self, change: Tensor) -> Measured:
        residuals = [each.residual(change) for _, each in self._weighted]
        value = sum(weight * residual for (weight, _), residual in zip(self._weighted, residuals))
        return residuals[: len(self.pairs)], value + float(self.inputs.ridge_value * change.square().sum())
