"""Conjugate gradients on D S = B, every output row a system of its own, batched over layers that read the same inputs.

Hestenes and Stiefel 1952. From D = 0 and without ridge the steps stay in the span of the inputs, so it tends to the
minimum-change solution; in floating point they leave it slowly, so where inputs do not span everything the residual is
projected back. It needs products with S only, no factorisation, and about as many as S has distinct eigenvalues.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers.outcome import Outcome, Solution, Status, by_inputs, outcomes_of


@dataclasses.dataclass(frozen=True)
class CG:
    """Attributes:
    iterations: most steps.
    tolerance: a row has converged when its residual's norm is below this share of the first one.
    """

    iterations: int = 500
    tolerance: float = 1e-11

    def solve(self, problems: Sequence[LayerProblem]) -> list[Outcome]:
        solutions = {}
        for places in by_inputs(problems):
            group = [problems[place] for place in places]
            inputs, targets = group[0].inputs, torch.cat([problem.target for problem in group], dim=-2)
            solved = self.minimise(inputs.matrix, targets, inputs.span)
            rows = [problem.target.shape[-2] for problem in group]
            parts = (found.split(rows, dim=-2) for found in solved)
            for place, change, steps, converged in zip(places, *parts):
                status = Status.CONVERGED if bool(converged.all()) else Status.ITERATION_LIMIT
                solutions[place] = Solution(change, status, int(steps.max()))
        return outcomes_of(problems, [solutions[place] for place in range(len(problems))])

    def minimise(self, matrix: Tensor, targets: Tensor, span: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Minimise `tr(D S D^T) / 2 - tr(D B^T)`.

        Args:
            matrix: S, `[..., in, in]`, symmetric, positive semi-definite.
            targets: B, `[..., out, in]`.
            span: projector onto the span of the inputs, `[..., in, in]`; None: they span everything.

        Returns:
            D `[..., out, in]`; steps taken and whether it converged, `[..., out, 1]` each.
        """
        change = torch.zeros_like(targets)
        residual = targets if span is None else targets @ span
        square = _square(residual)
        goal = self.tolerance**2 * square
        steps = torch.zeros_like(square, dtype=torch.long)
        running = square > goal
        direction = residual
        for _ in range(self.iterations):
            if not running.any():
                break
            bend = direction @ matrix
            along = (direction * bend).sum(-1, keepdim=True)
            running = running & (along > 0)  # otherwise nothing is left to gain in floating point
            length = torch.where(running, square / torch.where(running, along, 1.0), 0.0)
            change, residual = change + length * direction, residual - length * bend
            if span is not None:
                residual = residual @ span
            before, square = square, _square(residual)
            steps += running
            running = running & (square > goal)
            direction = residual + torch.where(running, square / before, 0.0) * direction
        return change, steps, square <= goal


def _square(rows: Tensor) -> Tensor:
    return rows.square().sum(-1, keepdim=True)
