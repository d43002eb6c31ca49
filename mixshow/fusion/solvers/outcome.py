"""What a solver says about one layer: the change, how it went, and what to do when it went badly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from enum import Enum
from typing import Any

from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.fusion.problem import LayerProblem, Measured

_BAD_CONDITION = 1e6
_BAD_SHARE = 0.5


class Status(Enum):
    """How a solution came about; the value is the sentence for people."""

    SOLVED = "solved by factorisation"
    MINIMUM_CHANGE = "the inputs do not span all directions; directions below the noise were left unchanged"
    CONVERGED = "the iteration converged"
    CONSTRAINED = "the constraints hold; what they leave free was solved by factorisation"
    CONTRADICTION = "the constraints contradict one another and are met in the sense of least squares"
    ITERATION_LIMIT = "the iteration limit was reached before convergence"


@dataclasses.dataclass(frozen=True)
class ConstraintFit:
    """How constraints were met.

    Attributes:
        rows: number of constraints on each output.
        rank: how many of them are independent.
        condition: largest over smallest singular value of the independent ones.
        residual: share of the wanted outputs' norm that is missed.
    """

    rows: int
    rank: int
    condition: float
    residual: float


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The fused change of one layer.

    Attributes:
        coordinates: D in terms of `basis`, `[rank, in]`, or D itself, `[out, in]`; float64, with the bias's change as a
            last column where it changes.
        rank: of S, anchor and ridge included, out of `width`: its eigenvalues above the recording's noise; over all
            channels of a normalisation. Where rows are kept, of their span.
        iterations: steps of an iterative solver, 0 for a factorisation.
        before: for each concept the residual of the unchanged base (D = 0).
        after: the same for the solution.
        objective_before: what was minimised, at D = 0; `objective_after` for the solution.
        constraints: of a problem that has them.
        in_order: residuals are of what all layers up to this one left lacking, not of this layer's change.
        basis: orthonormal columns, `[out, rank]`, that hold all of D's outputs; None: as many as outputs.
    """

    name: str
    coordinates: Tensor
    status: Status
    iterations: int
    rank: int
    width: int
    condition: float
    before: Sequence[float]
    after: Sequence[float]
    objective_before: float
    objective_after: float
    constraints: ConstraintFit | None = None
    in_order: bool = False
    basis: Tensor | None = None

    @property
    def parts(self) -> list[Tensor]:
        """What D is the product of."""
        return [self.coordinates] if self.basis is None else [self.basis, self.coordinates]

    @property
    def change(self) -> Tensor:
        """D, `[out, in]`, formed when it is asked for."""
        return self.coordinates if self.basis is None else self.basis @ self.coordinates

    @property
    def advice(self) -> str:
        """What to try when the fit is bad; empty when it is fine."""
        if self.status is Status.CONTRADICTION:
            return "the concepts' constraints contradict one another: give fewer merge.prompts, or use method=solve"
        if self.status is Status.ITERATION_LIMIT and self.condition > _BAD_CONDITION:
            return "ill-conditioned: record more prompts, raise solver.ridge, or use solver.name=exact"
        worst = max((after / before for before, after in zip(self.before, self.after) if before > 0), default=0.0)
        if worst > _BAD_SHARE and not self.in_order:
            return (
                "a concept keeps less than half of its change here: give it more weight, lower solver.ridge or "
                "anchor.weight, or train the concepts with smaller network rates"
            )
        if self.condition > _BAD_CONDITION:
            return "ill-conditioned inputs: record more prompts or raise solver.ridge"
        if self.status is Status.ITERATION_LIMIT:
            return "stopped early: raise solver.iterations, or use solver.precondition or solver.name=exact"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for the report; residuals are written there by concept."""
        return {
            "status": self.status.name.lower(),
            "meaning": self.status.value,
            "iterations": self.iterations,
            "rank": self.rank,
            "width": self.width,
            "condition": self.condition,
            "objective": [self.objective_before, self.objective_after],
            "change_norm": float(self.coordinates.norm()),
            "advice": self.advice,
            **({"constraints": dataclasses.asdict(self.constraints)} if self.constraints else {}),
        }


def by_inputs(problems: Sequence[LayerProblem]) -> list[list[int]]:
    """Places in `problems` of those that read the same inputs, so that they are one problem with more outputs."""
    groups: dict[int, list[int]] = {}
    for place, problem in enumerate(problems):
        groups.setdefault(id(problem.inputs), []).append(place)
    return list(groups.values())


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found for one layer, not measured yet.

    Attributes:
        change: D, `[..., out, in]`, shaped like the problem's target.
        iterations: steps of an iterative solver.
    """

    change: Tensor
    status: Status
    iterations: int = 0


def outcomes_of(problems: Sequence[LayerProblem], solutions: Sequence[Solution]) -> list[Outcome]:
    """Measure solutions; problems of one kind with common inputs together, so that moments in files are read once.

    Raises:
        MixshowError: what is wanted is no number.
    """
    kinds: dict[tuple[type[LayerProblem], int], list[int]] = {}
    for place, problem in enumerate(problems):
        kinds.setdefault((type(problem), id(problem.inputs)), []).append(place)
    measured: dict[int, Measured] = {}
    for (kind, _), places in kinds.items():
        found = kind.measured_together([problems[i] for i in places], [solutions[i].change for i in places])
        measured.update(zip(places, found))
    return [
        _outcome(problem, solution, measured[place])
        for place, (problem, solution) in enumerate(zip(problems, solutions))
    ]


def outcome_of(problem: LayerProblem, solution: Solution) -> Outcome:
    """Measure one."""
    return outcomes_of([problem], [solution])[0]


def _outcome(problem: LayerProblem, solution: Solution, measured: Measured) -> Outcome:
    before, objective_before = problem.unchanged
    if not math.isfinite(objective_before):
        raise MixshowError(
            f"'{problem.name}': what the concepts' networks add to its outputs holds values that are no numbers; a "
            "network's file is damaged, or a model overflows on these prompts"
        )
    after, objective_after = measured
    return Outcome(
        problem.name,
        solution.change.flatten(0, -2),
        solution.status,
        solution.iterations,
        problem.inputs.rank,
        problem.inputs.size,
        problem.inputs.condition,
        before,
        after,
        objective_before,
        objective_after,
    )
