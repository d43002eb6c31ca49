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
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.fusion.lanczos import largest_eigenvalue
from mixshow.fusion.moments import WeightedSum, opened, refuse_negative, refuse_sum, times
from mixshow.fusion.statistics import LayerInputs
from mixshow.fusion.triangular import solved_with_factor

Measured = tuple[list[float], float]  # each concept's residual, and the objective
_WIDE = 256  # wider inputs have so many eigenvalues that the two at the ends are looked for alone


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """What layers with common inputs have in common: their moments, so one matrix S and one factorisation.

    Attributes:
        statistics: one per concept.
        weights: one per concept.
        anchor: inputs under the base and ordinary captions.
        anchor_weight: mu.
        ridge: lambda as a share of the mean eigenvalue, `lambda = ridge * trace / width`; scale-free.
        shrinkage: share of the off-diagonal elements of all moments that is taken away, 0 to 1.
        name: of a layer that reads them, for messages.
    """

    statistics: Sequence[LayerInputs]
    weights: Sequence[float]
    anchor: LayerInputs | None = None
    anchor_weight: float = 0.0
    ridge: float = 0.0
    shrinkage: float = 0.0
    name: str = ""
    _summed: list[tuple[Tensor, float]] = dataclasses.field(default_factory=list, init=False, repr=False)  # or none yet

    @property
    def moments(self) -> Iterator[Tensor]:
        """G_i, `[in, in]` each, of a normalisation `[channels, in, in]`; one at a time, none is kept."""
        return (shrunk(each.moment / max(each.rows, 1), self.shrinkage) for each in self.statistics)

    @cached_property
    def anchor_moment(self) -> Tensor | None:
        """G_b, `[in, in]`."""
        if self.anchor is None:
            return None
        return shrunk(self.anchor.moment / max(self.anchor.rows, 1), self.shrinkage)

    @property
    def shape(self) -> torch.Size:
        """Of S, without forming it."""
        return self.statistics[0].shape

    @property
    def size(self) -> int:
        """Number of eigenvalues of S."""
        return self.shape[:-1].numel()

    def look(self, rows: Sequence[Tensor | None]) -> list[Tensor | None]:
        """`R_i G_i` of rows `[any, in]` of each concept, None where there are none; S comes of the first such pass.

        Raises:
            MixshowError: moments that are no numbers, or negative.
        """
        products: list[Tensor | None] = []
        total = None if self._summed else WeightedSum()
        for own, weight, each in zip(rows, self.weights, self.statistics):
            inputs = opened(each)
            if total is not None:
                refuse_negative(self.name, inputs)
                total.add(inputs, weight / max(each.rows, 1))
            products.append(None if own is None else times(own, inputs) / max(each.rows, 1))
        if total is None:
            return products
        if self.anchor is not None:
            inputs = opened(self.anchor)
            refuse_negative(self.name, inputs)
            total.add(inputs, self.anchor_weight / max(self.anchor.rows, 1))
        matrix = shrunk(total.value, self.shrinkage)
        refuse_sum(self.name, matrix)
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        ridge = self.ridge * float(diagonal.sum()) / self.size
        diagonal.add_(ridge)
        self._summed[:] = [(matrix, ridge)]
        return products

    def _sum(self) -> tuple[Tensor, float]:
        """S and lambda."""
        if not self._summed:
            self.look([None] * len(self.statistics))
        return self._summed[0]

    @property
    def ridge_value(self) -> float:
        """lambda."""
        return self._sum()[1]

    @property
    def matrix(self) -> Tensor:
        """S, `[in, in]`, float64."""
        return self._sum()[0]

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of S, ascending, and eigenvectors in columns."""
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, vectors

    @cached_property
    def spectrum(self) -> Tensor:
        """All eigenvalues of S, ascending."""
        # Without ridge the vectors will be wanted too; with it they are not, and cost thrice as much.
        values = self.eigen[0] if self.ridge_value == 0 else torch.linalg.eigvalsh(self.matrix)
        return values.flatten().sort().values

    @cached_property
    def span(self) -> Tensor | None:
        """The projector onto the inputs' span, `[in, in]`; None where they span everything."""
        if self.rank == self.size:
            return None
        values, vectors = self.eigen
        kept = values > self.resolution * values.max()
        return (vectors * kept.unsqueeze(-2)) @ vectors.mT

    @cached_property
    def factor(self) -> Tensor | None:
        """The Cholesky factor of S, lower; None where S is not positive definite."""
        factor, failed = torch.linalg.cholesky_ex(self.matrix)
        return None if failed.any() else factor

    @cached_property
    def preconditioner(self) -> Tensor:
        """The Cholesky factor of S; where inputs do not span everything, of S plus the noise of the recording.

        Raises:
            MixshowError: S has negative eigenvalues, which no rows give.
        """
        if self.rank == self.size and self.factor is not None:
            return self.factor
        shift = 2 * self.resolution * float(self.spectrum[-1]) or 1.0
        width = self.matrix.shape[-1]
        factor, failed = torch.linalg.cholesky_ex(self.matrix + shift * torch.eye(width).to(self.matrix))
        if failed.any():
            raise MixshowError("statistics: a moment has negative eigenvalues, which no inputs give; record them again")
        return factor

    @property
    def resolution(self) -> float:
        """Eigenvalues below this share of the largest are noise of the recording."""
        return max(each.resolution for each in self.statistics)

    @cached_property
    def lifted(self) -> bool:
        """Whether all eigenvalues are above the noise, known without computing them all."""
        if self.factor is None:
            return False
        trace = float(self.matrix.diagonal(dim1=-2, dim2=-1).sum())
        if self.ridge_value > self.resolution * trace:
            return True
        return self._wide and self.extremes[0] > 2 * self.resolution * self.extremes[1]

    @property
    def _wide(self) -> bool:
        return self.matrix.dim() == 2 and self.matrix.shape[-1] > _WIDE

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue of a positive definite S, to within some per cent."""
        factor, matrix = self.factor, self.matrix
        assert factor is not None
        inverse = largest_eigenvalue(lambda v: solved_with_factor(v[:, None], factor)[:, 0], matrix)
        return 1 / inverse, largest_eigenvalue(lambda v: matrix @ v, matrix)

    @property
    def rank(self) -> int:
        """Number of eigenvalues above the noise."""
        if self.lifted:
            return self.size
        return int((self.spectrum > self.resolution * self.spectrum[-1]).sum())

    @cached_property
    def condition(self) -> float:
        """Largest over smallest eigenvalue above the noise; of wide inputs above it all to within some per cent."""
        if self.lifted and self._wide:
            return self.extremes[1] / self.extremes[0]
        kept = self.spectrum[self.spectrum > self.resolution * self.spectrum[-1]]
        return float(kept[-1] / kept[0]) if len(kept) else float("inf")


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
        """Residuals and objective at D, `[out, in]`, in one pass over the moments."""
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

    def residuals(self, change: Tensor) -> list[float]:
        """For each concept the mean squared error of the outputs on its inputs, `tr((D - D_i) G_i (D - D_i)^T)`.

        Args:
            change: D, `[out, in]`.
        """
        return self.measured(change)[0]

    def objective(self, change: Tensor) -> float:
        """The value that solvers minimise at D, `[out, in]`."""
        return self.measured(change)[1]


def quadratic(error: Tensor, moment: Tensor) -> float:
    """`tr(E G E^T)`."""
    return float(((error @ moment) * error).sum())


def shrunk(moment: Tensor, share: float) -> Tensor:
    """A moment `[..., in, in]` with its off-diagonal elements smaller by a share; 0: the moment itself."""
    if share == 0:
        return moment
    return (1 - share) * moment + share * torch.diag_embed(moment.diagonal(dim1=-2, dim2=-1))
