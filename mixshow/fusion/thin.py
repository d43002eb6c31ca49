"""Layer problems of low-rank changes, with as few output rows as the changes span: the same solution, sooner.

With D_i = U_i V_i the fused change lies in the span of [U_1 .. U_n], whatever the weights, anchor and ridge. With Q an
orthonormal basis of it, D = Q E, and every term of the objective, being a norm of outputs, is the same for E and
Q^T D_i as for D and D_i. So E solves the same problem with as many rows as the ranks sum up to, instead of as many as
the layer has outputs: 12 for three concepts of rank 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mixshow.fusion.deltas import Matrices
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers import Outcome, Solver


def solve_thin(solver: Solver, problems: Sequence[LayerProblem]) -> list[Outcome]:
    """What `solver.solve` gives, in the problems' order; where ranks sum up to fewer than outputs as thin."""
    bases = [basis_of(problem) for problem in problems]
    thin = [problem if basis is None else thinned(problem, basis) for problem, basis in zip(problems, bases)]
    return [
        outcome if basis is None else dataclasses.replace(outcome, change=basis @ outcome.change)
        for outcome, basis in zip(solver.solve(thin), bases)
    ]


def basis_of(problem: LayerProblem) -> Tensor | None:
    """Orthonormal columns that span all concepts' changed outputs, `[out, ranks]`; None where they are not fewer."""
    if type(problem) is not LayerProblem or not isinstance(problem.deltas, Matrices):
        return None  # problems of another kind may look at outputs one by one
    factors = problem.deltas.factors()
    if factors is None:
        return None
    ups = torch.cat([each[0] for each in factors if each is not None], dim=1).double()
    return torch.linalg.qr(ups).Q if ups.shape[1] < ups.shape[0] else None


def thinned(problem: LayerProblem, basis: Tensor) -> LayerProblem:
    """The problem in coordinates of a basis of its changed outputs, with the same inputs."""
    assert isinstance(problem.deltas, Matrices)
    factors = problem.deltas.factors()
    assert factors is not None
    deltas = [None if each is None else (basis.mT @ each[0].double()) @ each[1].double() for each in factors]
    return dataclasses.replace(problem, deltas=deltas)
