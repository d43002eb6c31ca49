"""A method to compare fusion with: least squares inside the concepts' own low-rank factors (after SSR-Merge, 2026).

With D_i = U_i A_i, the stacked factors U = [U_1 .. U_n] and A = [A_1; ..; A_n] stay as they are, and a router R between
them, D = U R A, is asked to pass on concept i's own hidden values on its inputs and no other concept's:

    minimise over R:  sum_i w_i || (R - P_i) A X_i^T ||^2 / n_i        (P_i keeps the rows of concept i)

It knows neither the base's inputs nor the layers' outputs; fusion's D minimises over all changes instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers import Exact, Outcome, Status
from mixshow.fusion.solvers.outcome import Solution, outcomes_of

_ROUNDING = 1e-6  # changes are formed in float32; smaller singular values, as a share of the largest, are its rounding


@dataclasses.dataclass(frozen=True)
class Subspace:
    """Attributes:
    ridge: on the router's problem, as a share of the mean eigenvalue.
    """

    ridge: float = 1e-4

    def solve(self, problems: Sequence[LayerProblem]) -> list[Outcome]:
        """In the problems' order; normalisations, which have no such factors, are solved exactly."""
        places = [place for place, problem in enumerate(problems) if problem.matrix.dim() == 2]
        own = [problems[place] for place in places]
        solutions = [Solution(self.change(problem), Status.SOLVED) for problem in own]
        found = dict(zip(places, outcomes_of(own, solutions)))
        return [found[i] if i in found else Exact().solve([problem])[0] for i, problem in enumerate(problems)]

    def change(self, problem: LayerProblem) -> Tensor:
        """U R A, `[out, in]`; the anchor and the ridge of the problem take no part."""
        factors = [None if delta is None else _factors(delta.double()) for delta in problem.deltas]
        present = [each for each in factors if each is not None]
        up, down = (torch.cat(parts, dim) for parts, dim in zip(zip(*present), (1, 0)))
        seen, wanted = torch.zeros(len(down), len(down)).to(down), torch.zeros(len(down), len(down)).to(down)
        start = 0
        for each, weight, moment in zip(factors, problem.inputs.weights, problem.inputs.moments):
            hidden = weight * (down @ moment @ down.mT)
            seen += hidden
            if each is not None:  # a concept that leaves the layer alone wants nothing passed on
                own = slice(start, start + len(each[1]))
                wanted[own] += hidden[own]
                start = own.stop
        if len(seen):
            shift = self.ridge * float(seen.trace()) / len(seen) or 1.0
            seen = seen + shift * torch.eye(len(seen)).to(seen)
        return up @ torch.linalg.solve(seen, wanted.mT).mT @ down


def _factors(delta: Tensor) -> tuple[Tensor, Tensor]:
    """`(U [out, rank], A [rank, in])`, A with orthonormal rows."""
    left, values, right = torch.linalg.svd(delta, full_matrices=False)
    kept = values > _ROUNDING * values[0]
    return left[:, kept] * values[kept], right[kept]
