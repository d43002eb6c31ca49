"""Least squares inside the concepts' factors, checked on the rows themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixshow.fusion.build import build_problems
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers import Exact
from mixshow.fusion.statistics import LayerStatistics
from mixshow.fusion.subspace import Subspace

OUT, WIDTH = 6, 12


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(inputs: list[Tensor], deltas: list[Tensor | None], weights: list[float]) -> LayerProblem:
    changes = [{} if delta is None else {"layer": delta} for delta in deltas]
    statistics = [{"layer": LayerStatistics.of_rows(x)} for x in inputs]
    return build_problems(changes, statistics, weights=weights)[0]


@pytest.mark.parametrize("absent", [False, True])
def test_the_router_is_the_least_squares_of_hidden_values(absent: bool) -> None:
    """In any basis of the factors: here those the changes were made of."""
    ups, downs = [random(OUT, 2, seed=1), random(OUT, 3, seed=2)], [random(2, WIDTH, seed=3), random(3, WIDTH, seed=4)]
    inputs, weights = [random(40, WIDTH, seed=s) for s in (5, 6, 7)], [1.0, 2.0, 0.5]
    deltas: list[Tensor | None] = [up @ down for up, down in zip(ups, downs)]
    if absent:
        deltas.append(None)
    else:
        inputs, weights = inputs[:2], weights[:2]
    down, left, right = torch.cat(downs), [], []
    for i, (x, weight) in enumerate(zip(inputs, weights)):
        hidden = (weight / len(x)) ** 0.5 * x @ down.T
        own = torch.zeros_like(hidden)
        if i < 2:
            place = slice(0, 2) if i == 0 else slice(2, 5)
            own[:, place] = hidden[:, place]
        left.append(hidden)
        right.append(own)
    router = torch.linalg.lstsq(torch.cat(left), torch.cat(right)).solution.T
    found = Subspace(ridge=1e-12).change(problem(inputs, deltas, weights))
    torch.testing.assert_close(found, torch.cat(ups, dim=1) @ router @ down, rtol=1e-6, atol=1e-8)


def test_concepts_that_never_meet_are_added() -> None:
    """Each concept's inputs are invisible to the other's factors."""
    basis = torch.linalg.qr(random(WIDTH, WIDTH, seed=1)).Q
    inputs = [random(30, 4, seed=2) @ basis[:4], random(30, 4, seed=3) @ basis[4:8]]
    deltas = [random(OUT, 2, seed=4) @ basis[:2], random(OUT, 3, seed=5) @ basis[4:7]]
    [outcome] = Subspace(ridge=1e-12).solve([problem(inputs, [*deltas], [1, 1])])
    torch.testing.assert_close(outcome.change, deltas[0] + deltas[1])
    assert max(outcome.after) < 1e-12 * max(outcome.before)


def test_it_is_never_below_the_minimum_over_all_changes() -> None:
    case = problem(
        [random(40, WIDTH, seed=s) for s in (1, 2)], [random(OUT, 2, seed=3) @ random(2, WIDTH, seed=4)] * 2, [1, 1]
    )
    assert Exact().solve([case])[0].objective_after < 1e-12  # the same concept twice
    other = problem(
        [random(40, WIDTH, seed=s) for s in (1, 2)],
        [random(OUT, 2, seed=s) @ random(2, WIDTH, seed=s + 10) for s in (3, 4)],
        [1, 1],
    )
    [best], [routed] = Exact().solve([other]), Subspace().solve([other])
    assert best.objective_after < routed.objective_after < routed.objective_before
    assert torch.linalg.matrix_rank(routed.change) <= 4


def test_a_concept_that_changes_nothing_and_normalisations() -> None:
    inputs = [random(30, WIDTH, seed=s) for s in (1, 2)]
    silent = problem(inputs, [torch.zeros(OUT, WIDTH).double()] * 2, [1, 1])
    assert not Subspace().solve([silent])[0].change.any()
    norms = [{"norm": LayerStatistics.of_rows(x, elementwise=True, extended=True)} for x in inputs]
    built = build_problems(
        [{"norm": random(WIDTH, 2, seed=3)}, {"norm": random(WIDTH, 2, seed=4)}], norms, weights=[1, 1]
    )
    torch.testing.assert_close(Subspace().solve(built)[0].change, Exact().solve(built)[0].change)
