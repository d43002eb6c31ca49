"""L-BFGS on the quadratic form, batched over layers of equal shape, with the quadratic's exact step length.

Nocedal 1980. Value and gradient come from S and B alone, one product per step. Started at D = 0 and without ridge,
steps stay in the span of the inputs, so it tends to the minimum-change solution. In floating point they leave it
slowly, and the first step along a direction without curvature destroys the result (after some 60 steps on text
features), so where inputs do not span everything each direction is projected back.

Preconditioned, the recursion starts from the inverse of S by its Cholesky factor (shifted by the noise of the recording
where it has none): nearly the closed form, with the remaining steps for what rounding left. It has S's eigenvectors,
so that steps stay in the span all the same.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers.outcome import Outcome, Solution, Status, outcomes_of
from mixshow.fusion.solvers.recursion import apply_inverse, inner, scaled

_WIDE = 256  # on the CPU a wider layer has work for all cores, and putting matrices together takes longer than it saves


@dataclasses.dataclass(frozen=True)
class LBFGS:
    """Attributes:
    iterations: most steps.
    history: how many steps the curvature is remembered; on a quadratic with exact steps more is no better, and costs
        more than the products.
    tolerance: a layer has converged when its gradient's norm is below this share of the first one.
    batch_bytes: layers solved together keep their history within this memory.
    precondition: start each step from the inverse of S by its Cholesky factor.
    """

    iterations: int = 500
    history: int = 3
    tolerance: float = 1e-9
    batch_bytes: int = 1 << 30
    precondition: bool = False

    def solve(self, problems: Sequence[LayerProblem]) -> list[Outcome]:
        shapes: dict[tuple[int, ...], list[int]] = {}  # places in `problems`
        for place, problem in enumerate(problems):
            shapes.setdefault(tuple(problem.target.shape[-2:]), []).append(place)
        solutions = {}
        for (rows, width), alike in shapes.items():
            squares = 2 if self.precondition else 1
            each = 8 * (squares * width * width + 2 * (self.history + 4) * rows * width)
            alone = width > _WIDE and problems[alike[0]].target.device.type == "cpu"
            size = 1 if alone else max(1, self.batch_bytes // each)
            for start in range(0, len(alike), size):
                places = alike[start : start + size]
                batch = [problems[place] for place in places]
                targets = [problem.target.reshape(-1, rows, width) for problem in batch]
                solved = self.minimise(
                    _joined([problem.matrix.reshape(-1, width, width) for problem in batch]),
                    torch.cat(targets),
                    _spans(batch),
                    _factors(batch) if self.precondition else None,
                )
                parts = (found.split([len(target) for target in targets]) for found in solved)
                for place, problem, change, steps, converged in zip(places, batch, *parts):
                    status = Status.CONVERGED if bool(converged.all()) else Status.ITERATION_LIMIT
                    solutions[place] = Solution(change.reshape(problem.target.shape), status, int(steps.max()))
        return outcomes_of(problems, [solutions[place] for place in range(len(problems))])

    def minimise(
        self, matrices: Tensor, targets: Tensor, spans: Tensor | None = None, factors: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Minimise `tr(D S D^T) / 2 - tr(D B^T)` for a batch.

        Args:
            matrices: S, `[layers, in, in]`, symmetric, positive semi-definite.
            targets: B, `[layers, out, in]`.
            spans: projectors onto the span of the inputs, `[layers, in, in]`; None: they span everything.
            factors: Cholesky factors of a preconditioner, lower, `[layers, in, in]`.

        Returns:
            D `[layers, out, in]`, steps taken `[layers]`, whether each converged `[layers]`.
        """
        change = torch.zeros_like(targets)
        # Along what inputs do not span B is the noise of the recording, which no step takes away.
        gradient = -(targets if spans is None else targets @ spans)
        goal = self.tolerance * _norm(gradient)
        steps = torch.zeros(len(targets), dtype=torch.long, device=targets.device)
        running = _norm(gradient) > goal
        converged = ~running
        memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=self.history)
        for _ in range(self.iterations):
            if not running.any():
                break
            direction = -apply_inverse(memory, gradient, factors)
            if spans is not None:
                direction = direction @ spans
            curvature = direction @ matrices
            along = inner(direction, curvature)
            running = running & (along > 0)  # otherwise nothing is left to gain in floating point
            length = torch.where(running, -inner(direction, gradient) / torch.where(running, along, 1.0), 0.0)
            step, bend = scaled(length, direction), scaled(length, curvature)
            change, gradient = change + step, gradient + bend
            product = inner(step, bend)
            memory.append((step, bend, torch.where(product > 0, 1 / torch.where(product > 0, product, 1.0), 0.0)))
            steps += running
            reached = running & (_norm(gradient) <= goal)
            converged, running = converged | reached, running & ~reached
        return change, steps, converged


def _spans(problems: Sequence[LayerProblem]) -> Tensor | None:
    spans = [problem.inputs.span for problem in problems]
    if all(span is None for span in spans):
        return None
    width = problems[0].matrix.shape[-1]
    whole = torch.eye(width).to(problems[0].matrix)
    parts = [whole.expand_as(problem.matrix) if span is None else span for problem, span in zip(problems, spans)]
    return torch.cat([part.reshape(-1, width, width) for part in parts])


def _factors(problems: Sequence[LayerProblem]) -> Tensor:
    width = problems[0].matrix.shape[-1]
    return _joined([problem.inputs.preconditioner.reshape(-1, width, width) for problem in problems])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _norm(a: Tensor) -> Tensor:
    return a.flatten(1).norm(dim=1)
