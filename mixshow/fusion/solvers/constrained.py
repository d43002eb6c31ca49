"""The closed form of a quadratic under linear constraints, by the null space of the constraints.

    minimise over D:  tr(D S D^T) - 2 tr(D B^T)   subject to   D C^T = T^T

C = U diag(s) V^T reveals the constraints' rank. Along V the change is given, D V = T^T U / s; across it, in the
complement N of V, it solves the quadratic that is left: E (N^T S N) = (B - D_V S) N, D = D_V + E N^T. Constraints that
depend on others so drop out, those that contradict others are met in the sense of least squares, and no inverse of S
is needed (Nocedal and Wright, Numerical Optimization, section 16.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mixshow.fusion.constraints import ConstrainedProblem
from mixshow.fusion.inputs import Inputs
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers.exact import minimum_change
from mixshow.fusion.solvers.outcome import ConstraintFit, Outcome, Solution, Status, by_inputs, outcome_of

_CONTRADICTION = 1e-4  # share of the constraints' outputs that is missed; below it is rounding of float32 features


@dataclasses.dataclass(frozen=True)
class Constrained:
    """One factorisation for all layers that read the same inputs, in float64.

    Attributes:
        resolution: singular values of the constraints below this share of the largest count as zero; their rows are
            float32.
    """

    resolution: float = 1e-6

    def solve(self, problems: Sequence[LayerProblem]) -> list[Outcome]:
        """In the problems' order; all of them must have constraints."""
        outcomes = {}
        for places in by_inputs(problems):
            group: list[ConstrainedProblem] = []
            for place in places:
                problem = problems[place]
                assert isinstance(problem, ConstrainedProblem)
                group.append(problem)
            targets = torch.cat([problem.target for problem in group])
            outputs = torch.cat([problem.outputs for problem in group], dim=1)
            changes, rank, condition = self.minimise(group[0].inputs, targets, group[0].all_rows, outputs)
            sizes = [len(problem.target) for problem in group]
            for place, problem, change in zip(places, group, changes.split(sizes)):
                fit = ConstraintFit(len(problem.all_rows), rank, condition, problem.unmet(change))
                status = Status.CONSTRAINED if fit.residual <= _CONTRADICTION else Status.CONTRADICTION
                outcomes[place] = dataclasses.replace(outcome_of(problem, Solution(change, status)), constraints=fit)
        return [outcomes[place] for place in range(len(problems))]

    def minimise(self, inputs: Inputs, targets: Tensor, rows: Tensor, outputs: Tensor) -> tuple[Tensor, int, float]:
        """The change, and the constraints' rank and condition.

        Args:
            targets: B, `[out, in]`.
            rows: C, `[rows, in]`.
            outputs: T, `[rows, out]`.

        Returns:
            D `[out, in]`, rank, largest over smallest singular value above the resolution (1 without constraints).
        """
        left, values, right = torch.linalg.svd(rows)
        rank = int((values > self.resolution * values.max()).sum()) if values.numel() else 0
        given = (outputs.mT @ left[:, :rank] / values[:rank]) @ right[:rank]
        rest = right[rank:].mT
        reduced, wanted = rest.mT @ inputs.matrix @ rest, (targets - given @ inputs.matrix) @ rest
        factor, failed = torch.linalg.cholesky_ex(reduced)
        definite = inputs.ridge_value > 0 or not rest.numel()  # with nothing left free there is nothing to solve
        if definite and not failed:
            free = torch.cholesky_solve(wanted.mT, factor).mT
        else:
            values_left, vectors = torch.linalg.eigh(reduced)
            free, _ = minimum_change(wanted, values_left, vectors, inputs.resolution)
        condition = float(values[0] / values[rank - 1]) if rank else 1.0
        return given + free @ rest.mT, rank, condition
