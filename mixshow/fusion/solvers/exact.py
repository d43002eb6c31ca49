"""The closed form D = B S^-1: Cholesky where S is positive definite, otherwise the minimum-change solution."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mixshow.fusion.inputs import Inputs
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers.outcome import Outcome, Solution, Status, by_inputs, outcomes_of
from mixshow.fusion.triangular import solved_with_factor


@dataclasses.dataclass(frozen=True)
class Exact:
    """One factorisation for all layers that read the same inputs.

    Attributes:
        cutoff: without ridge, eigenvalues below this share of the largest count as zero; None: the resolution of the
            statistics. Directions cut off stay as in the base, which is the limit of a vanishing ridge.
    """

    cutoff: float | None = None

    def solve(self, problems: Sequence[LayerProblem]) -> list[Outcome]:
        solutions = {}
        for places in by_inputs(problems):
            group = [problems[place] for place in places]
            targets = torch.cat([problem.target for problem in group], dim=-2)
            changes, status = self._solve(group[0].inputs, targets)
            rows = [problem.target.shape[-2] for problem in group]
            for place, change in zip(places, changes.split(rows, dim=-2)):
                solutions[place] = Solution(change, status)
        return outcomes_of(problems, [solutions[place] for place in range(len(problems))])

    def _solve(self, inputs: Inputs, targets: Tensor) -> tuple[Tensor, Status]:
        if inputs.ridge_value > 0 and inputs.factor is not None:
            return solved_with_factor(targets.mT, inputs.factor).mT, Status.SOLVED
        cutoff = inputs.resolution if self.cutoff is None else self.cutoff
        changes, whole = minimum_change(targets, *inputs.eigen, cutoff)
        return changes, Status.SOLVED if whole else Status.MINIMUM_CHANGE


def minimum_change(targets: Tensor, values: Tensor, vectors: Tensor, cutoff: float) -> tuple[Tensor, bool]:
    """The smallest D with D S nearest to B, by the eigenvalues and eigenvectors of S; whether S had full rank.

    Args:
        targets: B, `[..., out, in]`.
        cutoff: eigenvalues below this share of the largest count as zero.
    """
    kept = values > cutoff * values.max().clamp(min=0)
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return (targets @ vectors * inverse.unsqueeze(-2)) @ vectors.mT, bool(kept.all())
