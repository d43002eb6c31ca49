"""All solvers agree with dense least squares: weights, anchors, shrunk moments; rank-deficient and ill-conditioned."""

from __future__ import annotations

import pytest
import torch

from mixshow.fusion.solvers import Solver, Status
from tests.fusion.test_solvers import SOLVERS, WIDTH, assert_same_outputs, delta, problem, reference, rows

WEIGHTS = [0.2, 1.0, 3.0]
DELTAS = [delta(seed) for seed in (3, 4, 5)]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("mu", [0.0, 0.5])
@pytest.mark.parametrize("rank", [5, WIDTH])
def test_weights_and_anchors_without_ridge(solver: Solver, mu: float, rank: int) -> None:
    """Inputs of all concepts and captions in one subspace: the least change outside it is none."""
    basis = torch.linalg.qr(rows(rank, 8).T).Q.T
    inputs = [rows(30, seed)[:, :rank] @ basis for seed in (1, 2, 7)]
    ordinary = rows(25, 9)[:, :rank] @ basis if mu else None
    [outcome] = solver.solve([problem(inputs, DELTAS, ordinary, weights=WEIGHTS, anchor_weight=mu)])
    expected = reference(inputs, DELTAS, WEIGHTS, anchor=ordinary, mu=mu)
    assert (outcome.change - expected).norm() <= 1e-6 * expected.norm()
    assert (outcome.rank, outcome.width) == (rank, WIDTH)
    outside = torch.eye(WIDTH, dtype=torch.float64) - basis.T @ basis
    assert (outcome.change @ outside).norm() <= 1e-8 * expected.norm()


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_weights_and_anchors_on_ill_conditioned_inputs(solver: Solver, ridge: float) -> None:
    scales = torch.logspace(0, -2, WIDTH, dtype=torch.float64)  # of S: a condition above 1e4
    inputs, ordinary = [rows(40, seed) * scales for seed in (1, 2, 7)], rows(30, 9) * scales
    [outcome] = solver.solve([problem(inputs, DELTAS, ordinary, weights=WEIGHTS, anchor_weight=0.4, ridge=ridge)])
    expected = reference(inputs, DELTAS, WEIGHTS, ridge=ridge, anchor=ordinary, mu=0.4)
    assert_same_outputs(outcome.change, expected, [*inputs, ordinary], 1e-6)
    assert outcome.status in (Status.SOLVED, Status.CONVERGED) and outcome.condition > (1e3 if ridge else 1e4)


def test_weights_far_apart_and_few_rows() -> None:
    """Weights over eight decades on fewer rows than inputs: the loudest concept is met, and the objective is lowest."""
    inputs = [rows(4, seed) for seed in (1, 2, 7)]
    case = problem(inputs, DELTAS, weights=[1e-4, 1.0, 1e4], ridge=1e-8)
    outcomes = [solver.solve([case])[0] for solver in SOLVERS[1:]]  # without a preconditioner it takes too long
    loudest, exact = inputs[2], outcomes[-1]
    for outcome in outcomes:
        torch.testing.assert_close(loudest @ outcome.change.T, loudest @ DELTAS[2].T, rtol=1e-4, atol=1e-4)
        assert outcome.objective_after <= exact.objective_after + 1e-10 * exact.objective_before


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_outcomes_tell_all_of_it(solver: Solver) -> None:
    inputs = [rows(30, 1), rows(30, 2)]
    case = problem(inputs, DELTAS[:2], rows(30, 9), anchor_weight=0.2, ridge=1e-2)
    [outcome] = solver.solve([case])
    told = outcome.to_json()
    assert told["status"] in ("solved", "converged") and told["meaning"]
    assert (told["iterations"] > 0) == (told["status"] == "converged")
    values = torch.linalg.eigvalsh(case.matrix)
    assert told["condition"] == pytest.approx(float(values[-1] / values[0])) and told["rank"] == WIDTH
    assert told["objective"] == pytest.approx(
        [case.objective(torch.zeros_like(outcome.change)), case.objective(outcome.change)]
    )
    for x, own, before, after in zip(inputs, DELTAS, outcome.before, outcome.after):
        assert before == pytest.approx(float((x @ own.T).square().sum() / len(x)))
        assert after == pytest.approx(float((x @ (outcome.change - own).T).square().sum() / len(x)))
