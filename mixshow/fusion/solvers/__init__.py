"""Solvers of layer problems, by the name options use. A solver has `solve(problems) -> outcomes`, in that order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers.cg import CG
from mixshow.fusion.solvers.constrained import Constrained
from mixshow.fusion.solvers.exact import Exact
from mixshow.fusion.solvers.lbfgs import LBFGS
from mixshow.fusion.solvers.outcome import Outcome, Status
from mixshow.fusion.solvers.sampled import Sampled

__all__ = ["CG", "LBFGS", "SOLVERS", "Constrained", "Exact", "Outcome", "Sampled", "Solver", "Status", "solver_named"]


class Solver(Protocol):
    """Minimises many layer problems."""

    def solve(self, problems: Sequence[LayerProblem]) -> list[Outcome]: ...


SOLVERS: dict[str, Any] = {"lbfgs": LBFGS, "exact": Exact, "cg": CG}


def solver_named(name: str, **options: Any) -> Solver:
    """Raises MixshowError when there is no such solver."""
    if name not in SOLVERS:
        raise MixshowError(f"solver '{name}': unknown{did_you_mean(name, SOLVERS)}")
    solver: Solver = SOLVERS[name](**options)
    return solver
