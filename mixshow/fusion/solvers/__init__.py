"""Solvers of layer problems, by the name options use. A solver has `solve(problems) -> outcomes`, in that order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers.cg import CG
from mixshow.fusion.solvers.constrained import Constrained
from mixshow.fusion.solvers.exact import Exact
from mixshow.fusion.solvers.lbfgs import LBFGS
from mixshow.fusion.solvers.outcome import Outcome, Status
from mixshow.fusion.solvers.sampled import Sampled

__all__ = ["CG", "LBFGS", "Constrained", "Exact", "Outcome", "Sampled", "Solver", "Status"]


class Solver(Protocol):
    """Minimises many layer problems."""

    def solve(self, problems: Sequence[LayerProblem]) -> list[Outcome]: ...
