"""What layers with common inputs have in common, where these are wide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixshow.fusion.inputs import Inputs
from mixshow.fusion.lanczos import largest_eigenvalue
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers import LBFGS, Exact
from mixshow.fusion.statistics import LayerStatistics


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_condition_of_wide_inputs_with_a_ridge_is_near_the_spectrums() -> None:
    rows = random(900, 300, seed=4) * torch.arange(1, 301).double().pow(-1)
    inputs = Inputs([LayerStatistics.of_rows(rows)], [1.0], ridge=1e-3)
    values = torch.linalg.eigvalsh(inputs.matrix)
    assert inputs.rank == 300 and inputs.condition == pytest.approx(float(values[-1] / values[0]), rel=0.1)
    assert largest_eigenvalue(lambda v: inputs.matrix @ v, inputs.matrix) == pytest.approx(float(values[-1]), rel=0.01)


def test_without_ridge_the_rank_is_the_spectrums() -> None:
    inputs = Inputs([LayerStatistics.of_rows(random(40, 300, seed=5))], [1.0])
    assert inputs.rank == 40


def decaying(width: int, loud: float) -> LayerStatistics:
    """Inputs whose directions fall off as those of features do, with one that is as loud as so many of all others."""
    basis = torch.linalg.qr(random(width, width, seed=6)).Q
    values = torch.arange(1, width + 1).double().pow(-3)
    values[0] += loud * values.sum()
    return LayerStatistics((basis * values) @ basis.mT, 1, 1e-7)


@pytest.mark.parametrize("loud", [0.0, 10.0])
def test_a_ridge_that_single_precision_sees_is_factorised_in_it(loud: float) -> None:
    inputs = Inputs([decaying(600, loud)], [1.0], ridge=1e-2)
    problem = LayerProblem("layer", inputs, [random(8, 600, seed=7)])
    [found], [exact] = LBFGS(precondition=True).solve([problem]), Exact().solve([problem])
    assert inputs.preconditioner.dtype == torch.float32 and inputs.rank == 600
    assert 1 < found.iterations <= 5
    assert found.objective_after == pytest.approx(exact.objective_after, rel=1e-10)
    torch.testing.assert_close(found.change, exact.change, rtol=0, atol=1e-4 * float(exact.change.abs().max()))
    values = torch.linalg.eigvalsh(inputs.matrix)
    assert inputs.condition == pytest.approx(float(values[-1] / values[0]), rel=0.1)


def test_a_ridge_below_single_precisions_rounding_is_not() -> None:
    inputs = Inputs([decaying(600, 10.0)], [1.0], ridge=1e-5)
    assert inputs.single_factor is None and inputs.preconditioner.dtype == torch.float64
    assert Inputs([decaying(200, 0.0)], [1.0], ridge=1e-2).single_factor is None  # not worth it


def test_more_negative_moments_than_the_ridge_lifts_have_no_factor() -> None:
    moment = torch.diag(torch.ones(300).double())
    moment[0, 1] = moment[1, 0] = 1.5
    inputs = Inputs([LayerStatistics(moment, 1, 1e-7)], [1.0], ridge=1e-2)
    assert inputs.single_factor is None and inputs.factor is None
