"""Layer problems of low-rank changes, with as few output rows as the changes span: the same solution, sooner.

With D_i = U_i V_i the fused change lies in the span of [U_1 .. U_n], whatever the weights, anchor and ridge. With Q an
orthonormal basis of it, D = Q E, and every term of the objective, being a norm of outputs, is the same for E and
Q^T D_i as for D and D_i. So E solves the same problem with as many rows as the ranks sum up to, instead of as many as
the layer has outputs: 12 for three concepts of rank 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mixshow.fusion.deltas import FormedMatrices, Matrices
from mixshow.fusion.inputs import Inputs
from mixshow.fusion.members import Member
from mixshow.fusion.moments import Squares, opened, times
from mixshow.fusion.problem import LayerProblem, Measured
from mixshow.fusion.solvers import Outcome, Solver
from mixshow.fusion.solvers.outcome import by_inputs
from mixshow.fusion.statistics import LayerInputs
from mixshow.models import Base

Factors = Sequence["tuple[Tensor, Tensor] | None"]  # up [out, r], down [r, in] of each concept
_HALF_THE_DIGITS = 1e-8  # of float64: a difference that is smaller than this share of its terms has fewer left


def solve_thin(solver: Solver, problems: Sequence[LayerProblem]) -> list[Outcome]:
    """What `solver.solve` gives, in the problems' order; where ranks sum up to fewer than outputs as thin."""
    bases = [basis_of(problem) for problem in problems]
    thin = list(problems)
    for places in by_inputs(problems):
        own = [place for place in places if bases[place] is not None]
        for place, problem in zip(own, _thinned([problems[place] for place in own], [bases[place] for place in own])):
            thin[place] = problem
    return [dataclasses.replace(outcome, basis=basis) for outcome, basis in zip(solver.solve(thin), bases)]


def basis_of(problem: LayerProblem) -> Tensor | None:
    """Orthonormal columns that span all concepts' changed outputs, `[out, ranks]`; None where they are not fewer."""
    factors = _factors_of(problem)
    if factors is None:
        return None
    ups = torch.cat([each[0] for each in factors if each is not None], dim=1).double()
    # In a row-major layout as from a file, so that an interrupted run forms the same bits from it.
    return torch.linalg.qr(ups).Q.contiguous() if ups.shape[1] < ups.shape[0] else None


def ranks_of(base: Base, members: Sequence[Member]) -> dict[str, int]:
    """By module path, what members' ranks sum up to; without layers in which one of them has no low rank."""
    found: dict[str, int] = {}
    whole: set[str] = set()
    for member in members:
        changes = member.changes(base)
        for path in changes:
            factors = changes.factors(path)
            if factors is None:
                whole.add(path)
            else:
                found[path] = found.get(path, 0) + factors[0].shape[1]
    return {path: rank for path, rank in found.items() if path not in whole}


def _factors_of(problem: LayerProblem) -> Factors | None:
    if type(problem) is not LayerProblem or not isinstance(problem.deltas, Matrices):
        return None  # problems of another kind may look at outputs one by one
    return problem.deltas.factors()


def _thinned(problems: Sequence[LayerProblem], bases: Sequence[Tensor | None]) -> list[LayerProblem]:
    """Problems with common inputs in coordinates of bases of their changed outputs."""
    products = [_in_coordinates(problem, basis) for problem, basis in zip(problems, bases)]
    if not problems or problems[0].inputs.shrinkage > 0:
        return [LayerProblem(problem.name, problem.inputs, own) for problem, own in zip(problems, products)]
    seen = _seen(problems[0].inputs, products)
    return [
        ThinProblem(problem.name, problem.inputs, own, each) for problem, own, each in zip(problems, products, seen)
    ]


def _in_coordinates(problem: LayerProblem, basis: Tensor | None) -> Products:
    factors = _factors_of(problem)
    assert factors is not None and basis is not None
    return Products([None if each is None else (basis.mT @ each[0].double(), each[1].double()) for each in factors])


def _seen(inputs: Inputs, products: Sequence[Products]) -> list[list[Tensor | None]]:
    """Of layers with common inputs `V_i G_i` of each concept, `[r, in]`, in one pass over the moments."""
    found: list[list[Tensor | None]] = [[None] * len(inputs.statistics) for _ in products]
    downs = [
        {layer: factors[1] for layer, each in enumerate(products) if (factors := each.factors[number]) is not None}
        for number in range(len(inputs.statistics))
    ]
    seen = inputs.look([torch.cat(list(own.values())) if own else None for own in downs])
    for number, (own, product) in enumerate(zip(downs, seen)):
        if product is not None:
            for layer, part in zip(own, product.split([len(down) for down in own.values()])):
                found[layer][number] = part
    return found


class Products(FormedMatrices):
    """D_i of one layer as factors, `(up [out, r], down [r, in])` each; a matrix when it is asked for."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors

    def __len__(self) -> int:
        return len(self.factors)

    def formed(self, place: int) -> Tensor | None:
        factors = self.factors[place]
        return None if factors is None else factors[0] @ factors[1]


@dataclasses.dataclass(frozen=True, eq=False)
class ThinProblem(LayerProblem):
    """A layer problem whose changes are factors, with moments that are not shrunk: the same values by fewer operations.

    A concept's moment is multiplied by its own change's rows alone, `V_i G_i`. What is lost at D is then, with
    D_i = U_i V_i,

        tr((D - D_i) G_i (D - D_i)^T)  =  tr(D G_i D^T) - 2 tr(U_i V_i G_i D^T) + tr(D_i G_i D_i^T)

    of which the first is one pass over G_i, and nothing else reads it. Where that cancels it is computed as it stands.

    Attributes:
        deltas: by their factors.
        seen: `V_i G_i` of each concept, `[r, in]`.
    """

    deltas: Products
    seen: Sequence[Tensor | None]

    @cached_property
    def _of_the_base(self) -> tuple[Tensor | None, list[float], float]:
        residuals = [
            0.0 if each is None or seen is None else float(((each[0].mT @ each[0]) @ seen * each[1]).sum())
            for each, seen in zip(self.deltas.factors, self.seen)
        ]
        known = zip(self.inputs.weights, self.deltas.factors, self.seen)
        ups, seen = zip(*[(weight * each[0], own) for weight, each, own in known if each is not None])
        value = sum(weight * residual for weight, residual in zip(self.inputs.weights, residuals))
        return torch.cat(ups, dim=1) @ torch.cat(seen), residuals, value

    @staticmethod
    def measured_together(problems: Sequence[ThinProblem], changes: Sequence[Tensor]) -> list[Measured]:
        """See `LayerProblem`."""
        inputs, squares = problems[0].inputs, [Squares(change) for change in changes]
        residuals: list[list[float]] = [[] for _ in problems]
        for number, stored in enumerate(inputs.statistics):
            moment = opened(stored)
            for problem, change, square, found in zip(problems, changes, squares, residuals):
                found.append(problem._residual(number, change, square.of(moment) / max(moment.rows, 1), moment))
        values = [
            sum(weight * residual for weight, residual in zip(inputs.weights, found))
            + float(inputs.ridge_value * change.square().sum())
            for change, found in zip(changes, residuals)
        ]
        if inputs.anchor is not None:
            moment = opened(inputs.anchor)
            share = inputs.anchor_weight / max(moment.rows, 1)
            values = [value + share * square.of(moment) for value, square in zip(values, squares)]
        return list(zip(residuals, values))

    def _residual(self, number: int, change: Tensor, own: float, moment: LayerInputs) -> float:
        """Of one concept at D, whose moment is opened.

        Args:
            own: `tr(D G_i D^T)`.
        """
        factors, seen, before = self.deltas.factors[number], self.seen[number], self._of_the_base[1][number]
        if factors is None or seen is None:
            return own
        residual = own - 2 * float(((factors[0].mT @ change) * seen).sum()) + before
        if residual < _HALF_THE_DIGITS * (own + before):
            error = change - factors[0] @ factors[1]
            residual = float((times(error, moment) * error).sum()) / max(moment.rows, 1)
        return residual
