"""Layers of low-rank changes solved in the changes' own directions: the same outcomes as with all outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixshow.fusion.build import build_problems
from mixshow.fusion.deltas import Matrices
from mixshow.fusion.layers import Stage
from mixshow.fusion.members import Member
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers import LBFGS, Exact
from mixshow.fusion.statistics import LayerStatistics, second_moment
from mixshow.fusion.thin import basis_of, solve_thin
from mixshow.models import Base
from tests.tiny import tiny_concept


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    """Two concepts of rank 2, one of them weaker; the tiny base's layers are 16 and more wide."""
    return [Member(tiny_concept(tiny, "duck", seed=0)), Member(tiny_concept(tiny, "fox", seed=1), unet=0.5)]


def problems_of(base: Base, members: list[Member], ridge: float = 1e-2, shrinkage: float = 0.0) -> list[LayerProblem]:
    """Of all keys and values, each layer with inputs of its own, 12 rows of each concept."""
    deltas = [member.changes(base, [Stage.KEY_VALUE]) for member in members]
    statistics = [
        {
            name: LayerStatistics.of_rows(random(12, delta.shape[1], seed=10 * i + number))
            for number, (name, delta) in enumerate(own.items())
        }
        for i, own in enumerate(deltas)
    ]
    anchor = {name: LayerStatistics.of_rows(random(9, each.shape[0], seed=99)) for name, each in statistics[0].items()}
    return build_problems(
        deltas, statistics, weights=[1, 2], anchor=anchor, anchor_weight=0.3, ridge=ridge, shrinkage=shrinkage
    )


@pytest.mark.parametrize("solver", [Exact(), LBFGS(precondition=True)])
@pytest.mark.parametrize(("ridge", "shrinkage"), [(1e-2, 0.0), (1e-2, 0.4), (0.0, 0.0)])
def test_thin_and_whole_problems_have_the_same_outcomes(
    tiny: Base, members: list[Member], solver: Exact | LBFGS, ridge: float, shrinkage: float
) -> None:
    problems = problems_of(tiny, members, ridge, shrinkage)
    for problem, thin, whole in zip(problems, solve_thin(solver, problems), solver.solve(problems)):
        basis = basis_of(problem)
        assert basis is not None and basis.shape[1] == 4 < len(whole.change)
        torch.testing.assert_close(thin.change, whole.change, rtol=1e-5, atol=1e-7)  # deltas are formed in float32
        torch.testing.assert_close(
            torch.tensor([*thin.before, *thin.after, thin.objective_before, thin.objective_after]),
            torch.tensor([*whole.before, *whole.after, whole.objective_before, whole.objective_after]),
            rtol=1e-5, atol=1e-9,
        )  # fmt: skip
        assert (thin.name, thin.rank, thin.width, thin.status) == (whole.name, whole.rank, whole.width, whole.status)


def test_factors_are_the_changes_at_the_members_strength(tiny: Base, members: list[Member]) -> None:
    changes = members[1].changes(tiny)
    for path, change in changes.items():
        factors = changes.factors(path)
        assert factors is not None and changes.columns(path) == change.flatten(1).shape[1]
        torch.testing.assert_close(factors[0] @ factors[1], change.flatten(1))


def test_changes_of_full_rank_are_solved_as_they_are() -> None:
    statistics = LayerStatistics.of_rows(random(20, 6, seed=1))
    [problem] = build_problems([{"layer": random(5, 6, seed=2)}], [{"layer": statistics}], weights=[1], ridge=1e-2)
    assert isinstance(problem.deltas, Matrices) and basis_of(problem) is None
    [outcome], [whole] = solve_thin(Exact(), [problem]), Exact().solve([problem])
    assert torch.equal(outcome.change, whole.change)


def test_wide_moments_are_the_products_of_all_rows() -> None:
    rows = random(50, 301, seed=3)
    moment = second_moment(rows)
    torch.testing.assert_close(moment, rows.T @ rows)
    longer = second_moment(rows, extended=True)
    torch.testing.assert_close(longer[-1], torch.cat([rows, torch.ones(50, 1).double()], dim=1).sum(0))
