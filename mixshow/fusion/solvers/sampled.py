"""L-BFGS for objectives that are no quadratic, on kept rows, from the quadratic's own solution.

Huber's objective is convex; the cosine's is not, so that where it starts matters. The curvature of the squares is the
preconditioner. Steps are found by bisection until they satisfy the weak Wolfe conditions (Lewis and Overton 2013),
which keeps the remembered curvature positive; along a step outputs change linearly, so that the search costs no
products with rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from mixshow.fusion.losses import Cosine, Huber, RowLoss
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.samples import SampledProblem
from mixshow.fusion.solvers.lbfgs import LBFGS
from mixshow.fusion.solvers.outcome import Outcome, Solution, Status, outcome_of
from mixshow.fusion.solvers.recursion import apply_inverse, inner

_DECREASE, _CURVATURE = 1e-4, 0.9  # of the Wolfe conditions
_BISECTIONS = 50
_EXACT = 1e-9  # errors below this share of what is wanted are none


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Attributes:
    objective: `huber` or `cosine`.
    delta: of huber, where errors begin to count by their size alone, as a multiple of the median row's error in the
        quadratic's solution.
    start: solves the quadratic; problems without kept rows are left at that.
    iterations: most steps.
    history: how many steps the curvature is remembered.
    tolerance: a layer has converged when its gradient's norm is below this share of that at D = 0.
    """

    objective: Literal["huber", "cosine"]
    delta: float = 1.0
    start: LBFGS = dataclasses.field(default_factory=lambda: LBFGS(precondition=True))
    iterations: int = 500
    history: int = 10
    tolerance: float = 1e-6

    def solve(self, problems: Sequence[LayerProblem]) -> list[Outcome]:
        return [
            self._solve(problem, start) if isinstance(problem, SampledProblem) else start
            for problem, start in zip(problems, self.start.solve(problems))
        ]

    def loss(self, problem: SampledProblem, start: Tensor) -> RowLoss | None:
        """The loss of a problem's rows; None where the start D `[out, in]` already does all that is wanted."""
        if self.objective == "cosine":
            goals = problem.outputs_before + problem.wanted
            mean = float((problem.row_weights * goals.square().sum(1)).sum())
            return Cosine(problem.outputs_before, problem.wanted, 2 * mean)
        errors = (problem.all_rows @ start.mT - problem.wanted).norm(dim=1)
        if errors.max() <= _EXACT * problem.wanted.norm(dim=1).max():
            return None
        # With half of the rows fitted exactly the median says nothing.
        typical = float(errors.median()) or float(errors.mean())
        return Huber(problem.wanted, self.delta * typical)

    def _solve(self, problem: SampledProblem, start: Outcome) -> Outcome:
        problem = dataclasses.replace(problem)  # its rows in float64 and their outputs are not kept with it
        loss = self.loss(problem, start.change)
        if loss is None:
            return start
        change, steps, converged = self.minimise(problem, loss, start.change)
        status = Status.CONVERGED if converged else Status.ITERATION_LIMIT
        outcome = outcome_of(problem, Solution(change, status, steps))
        return dataclasses.replace(
            outcome,
            objective_before=problem.value_of(loss, torch.zeros_like(change)),
            objective_after=problem.value_of(loss, change),
        )

    def minimise(self, problem: SampledProblem, loss: RowLoss, change: Tensor) -> tuple[Tensor, int, bool]:
        """Minimise from D `[out, in]`; returns D, steps taken and whether it converged."""
        factors = math.sqrt(2) * problem.inputs.preconditioner[None]  # the squares' second derivative is 2 S
        span = problem.inputs.span
        goal = self.tolerance * float(problem.gradient_of(loss, torch.zeros_like(change)).norm())
        gradient = problem.gradient_of(loss, change)
        memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=self.history)
        for step in range(self.iterations):
            if float(gradient.norm()) <= goal:
                return change, step, True
            direction = -apply_inverse(memory, gradient[None], factors)[0]
            if span is not None:
                direction = direction @ span
            length = _wolfe_step(_along(problem, loss, change, direction))
            if length is None:  # nothing is left to gain in floating point
                return change, step, False
            moved = length * direction
            change = change + moved
            before, gradient = gradient, problem.gradient_of(loss, change)
            bend = gradient - before
            product = inner(moved[None], bend[None])
            if product > 0:
                memory.append((moved[None], bend[None], 1 / product))
        return change, self.iterations, float(gradient.norm()) <= goal


def _along(
    problem: SampledProblem, loss: RowLoss, change: Tensor, direction: Tensor
) -> Callable[[float], tuple[float, float]]:
    """Value and slope of the objective at `change + t direction`, as a function of t."""
    outputs, steps = problem.all_rows @ change.mT, problem.all_rows @ direction.mT
    pulled = direction @ problem.pull
    level = float(((change @ problem.pull) * change).sum())
    slope, bend = float((pulled * change).sum()), float((pulled * direction).sum())

    def at(t: float) -> tuple[float, float]:
        values, slopes = loss(outputs + t * steps)
        value = float((problem.row_weights * values).sum()) + level + 2 * t * slope + t * t * bend
        return value, float((problem.row_weights * (slopes * steps).sum(1)).sum()) + 2 * slope + 2 * t * bend

    return at


def _wolfe_step(along: Callable[[float], tuple[float, float]]) -> float | None:
    """A step length that satisfies the weak Wolfe conditions; None where none lowers the objective."""
    value, slope = along(0.0)
    if not slope < 0:
        return None
    low, high, length, best = 0.0, math.inf, 1.0, None
    for _ in range(_BISECTIONS):
        here, steepness = along(length)
        if not here <= value + _DECREASE * length * slope:
            high = length
        elif steepness < _CURVATURE * slope:
            low = best = length
        else:
            return length
        length = 2 * low if high == math.inf else (low + high) / 2
    return best
