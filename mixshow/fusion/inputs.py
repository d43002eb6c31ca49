"""What layers with the same inputs have in common: the matrix S of their least-squares problems, and its factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.fusion.lanczos import largest_eigenvalue
from mixshow.fusion.moments import WeightedSum, opened, refuse_negative, refuse_sum, times
from mixshow.fusion.statistics import LayerInputs
from mixshow.fusion.triangular import solved_with_factor

_WIDE = 256  # wider inputs have so many eigenvalues that the two at the ends are looked for alone
# A ridge above this share of the trace lifts all eigenvalues of S out of what single precision rounds.
_ABOVE_SINGLE = 4 * torch.finfo(torch.float32).eps


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
    def single_factor(self) -> Tensor | None:
        """The Cholesky factor of wide inputs' S in single precision; None where that would lose eigenvalues.

        It takes half as long on a processor, and a small part on graphics cards that are slow in double precision. An
        iteration that starts from it is there after a step or two more.
        """
        if not self._wide or self.ridge_value <= _ABOVE_SINGLE * self._trace:
            return None
        factor, failed = torch.linalg.cholesky_ex(self.matrix.float())
        return None if failed.any() else factor

    @cached_property
    def preconditioner(self) -> Tensor:
        """The Cholesky factor of S; where inputs do not span everything, of S plus the noise of the recording.

        In single precision where that is enough.

        Raises:
            MixshowError: S has negative eigenvalues, which no rows give.
        """
        if self.single_factor is not None:
            return self.single_factor
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
        if self._some_factor is None:
            return False
        if self.ridge_value > self.resolution * self._trace:
            return True
        return self._wide and self.extremes[0] > 2 * self.resolution * self.extremes[1]

    @property
    def _some_factor(self) -> Tensor | None:
        """The Cholesky factor that is there, or else the one that takes less."""
        if self.__dict__.get("factor") is None and self.single_factor is not None:
            return self.single_factor
        return self.factor

    @property
    def _trace(self) -> float:
        return float(self.matrix.diagonal(dim1=-2, dim2=-1).sum())

    @property
    def _wide(self) -> bool:
        return self.matrix.dim() == 2 and self.matrix.shape[-1] > _WIDE

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue of a positive definite S, to within some per cent."""
        factor, matrix = self._some_factor, self.matrix
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


def shrunk(moment: Tensor, share: float) -> Tensor:
    """A moment `[..., in, in]` with its off-diagonal elements smaller by a share; 0: the moment itself."""
    if share == 0:
        return moment
    return (1 - share) * moment + share * torch.diag_embed(moment.diagonal(dim1=-2, dim2=-1))
