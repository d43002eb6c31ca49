"""The least-squares problem of one layer, in the form every solver needs.

Over concepts i with normalised input moments G_i, weight changes D_i and weights w_i, the change D of the fused
layer (its weight is W_0 + D) minimises

    sum_i w_i tr((D - D_i) G_i (D - D_i)^T)  +  mu tr(D G_b D^T)  +  lambda ||D||^2

which is the quadratic form of S = sum_i w_i G_i + mu G_b + lambda I and B = sum_i w_i D_i G_i. The ridge pulls the
*change* to zero, never the weight. Moments of few rows can be shrunk towards their diagonals first (Jin et al. 2023,
RegMean, arXiv 2212.09849), and weights divided by how loud concepts are.

A layer whose bias changes has inputs extended by a constant 1, and the bias's change as the last column of D. A
normalisation is a batch of such problems, one per channel, with one input each: all matrices have a leading axis then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from mixshow.fusion.inputs import Inputs

Measured = tuple[list[float], float]  # each concept's residual, and the objective


@dataclasses.dataclass(frozen=True, eq=False)
class LayerProblem:
    """One layer to fuse.

    Attributes:
        name: module path.
        inputs: shared with the layers that read the same.
        deltas: D_i, `[out, in]` each (convolutions flattened; of a normalisation `[channels, 1, in]`); None: the
            concept leaves this layer alone. May be formed anew at each access.
    """

    name: str
    inputs: Inputs
    deltas: Sequence[Tensor | None]

    @property
    def matrix(self) -> Tensor:
        """S, `[in, in]`."""
        return self.inputs.matrix

    @property
    def metric(self) -> Tensor:
        """S of all that was recorded, `[in, in]`, in which changes are truncated."""
        return self.inputs.matrix

    @cached_property
    def target(self) -> Tensor:
        """B, `[out, in]`, float64."""
        target = self._of_the_base[0]
        assert target is not None
        return target

    @property
    def unchanged(self) -> Measured:
        """`measured` at D = 0."""
        return self._of_the_base[1:]

    @cached_property
    def _of_the_base(self) -> tuple[Tensor | None, list[float], float]:
        """B, and what is lost at D = 0, in one pass over the moments."""
        target: Tensor | None = None
        residuals, value = [], 0.0
        for weight, delta, each in zip(self.inputs.weights, self.deltas, self.inputs.statistics):
            if delta is None:
                residuals.append(0.0)
                continue
            delta, moment, rows = delta.double(), each.moment, max(each.rows, 1)
            recorded = delta @ moment
            residuals.append(float((recorded * delta).sum()) / rows)
            product = self._shrunk(recorded, delta, moment)
            value += weight / rows * float((product * delta).sum())
            target = product * (weight / rows) if target is None else target.add_(product, alpha=weight / rows)
        return target, residuals, value

    def _shrunk(self, product: Tensor, rows: Tensor, moment: Tensor) -> Tensor:
        """`rows @ shrunk(moment)` from `rows @ moment`."""
        share = self.inputs.shrinkage
        if share == 0:
            return product
        return (1 - share) * product + share * rows * moment.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)

    def measured(self, change: Tensor) -> Measured:
        """Residuals and objective at D, `[out, in]`, in one pass over the moments.

        A residual is a concept's mean squared error of the outputs on its inputs, `tr((D - D_i) G_i (D - D_i)^T)`.
        """
        return self.measured_together([self], [change])[0]

    @staticmethod
    def measured_together(problems: Sequence[Any], changes: Sequence[Tensor]) -> list[Measured]:
        """`measured` of problems of this kind with the same inputs: every moment is opened once for all of them."""
        inputs: Inputs = problems[0].inputs
        residuals: list[list[float]] = [[] for _ in problems]
        values = [float(inputs.ridge_value * change.square().sum()) for change in changes]
        for number, (weight, each) in enumerate(zip(inputs.weights, inputs.statistics)):
            moment, rows = each.moment, max(each.rows, 1)
            for place, (problem, change) in enumerate(zip(problems, changes)):
                delta = problem.deltas[number]
                error = change if delta is None else change - delta.double()
                product = error @ moment
                residuals[place].append(float((product * error).sum()) / rows)
                values[place] += weight / rows * float((problem._shrunk(product, error, moment) * error).sum())
        if inputs.anchor_moment is not None:
            shares = [inputs.anchor_weight * quadratic(change, inputs.anchor_moment) for change in changes]
            values = [value + share for value, share in zip(values, shares)]
        return list(zip(residuals, values))

    def objective(self, change: Tensor) -> float:
        """The value that solvers minimise at D, `[out, in]`."""
        return self.measured(change)[1]


def quadratic(error: Tensor, moment: Tensor) -> float:
    """`tr(E G E^T)`."""
    return float(((error @ moment) * error).sum())
