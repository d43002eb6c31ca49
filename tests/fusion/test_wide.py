"""Inputs that are too wide for their moment: rows in its place, the same solution as with the moment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.fusion.recorder import StatisticsRecorder
from mixshow.fusion.reduction import common_span
from mixshow.fusion.solve import solved
from mixshow.fusion.solved_layers import Solved
from mixshow.fusion.solvers import CG, LBFGS, Exact, Solver
from mixshow.fusion.statistics import SINGLE_RESOLUTION, LayerStatistics, input_rows
from mixshow.fusion.wide import KeptRows, Reservoir, RowSampling

OUT, WIDTH = 5, 30


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept(count: int, seed: int, *, rows: int | None = None) -> KeptRows:
    return KeptRows(random(count, WIDTH, seed=seed).float(), rows or count, 1e-7)


def dense(inputs: KeptRows) -> LayerStatistics:
    return LayerStatistics(inputs.moment, inputs.rows, inputs.resolution)


def test_rows_are_their_moment() -> None:
    each = kept(8, 0, rows=80)
    exact = each.kept.double()
    torch.testing.assert_close(each.moment, 10 * exact.T @ exact)
    assert each.shape == each.moment.shape


@pytest.mark.parametrize("solver", [Exact(), LBFGS(tolerance=1e-13), LBFGS(precondition=True), CG()])
@pytest.mark.parametrize("options", [{}, {"ridge": 0.0}, {"shrinkage": 0.3}, {"normalise": "changes"}, {"anchor": 0.0}])
def test_solutions_are_those_of_the_moments(solver: Solver, options: dict[str, Any]) -> None:
    """Few enough rows to be solved in their span, and one layer with more; one concept leaves a layer alone."""
    options = {"ridge": 1e-2, **options}
    mu = options.pop("anchor", 0.5)
    inputs = [{"few": kept(6, 1), "many": kept(40, 2)}, {"few": kept(9, 3, rows=90), "many": kept(5, 4)}]
    base = {"few": kept(4, 5), "many": kept(4, 6)}
    deltas = [
        {"few": random(OUT, WIDTH, seed=7), "many": random(OUT, WIDTH, seed=8)},
        {"few": random(OUT, WIDTH - 1, seed=9)},  # leaves the bias alone
    ]

    def solutions(as_moments: bool) -> dict[str, Solved]:
        convert = dense if as_moments else lambda each: each
        concepts = [{name: convert(each) for name, each in own.items()} for own in inputs]
        anchor = {name: convert(each) for name, each in base.items()} if mu else None
        found = solved(
            deltas, concepts, anchor, solver, keep_metrics=True, weights=[1.0, 2.0], anchor_weight=mu, **options
        )
        return {each.outcome.name: each for each in found}

    expected, ours = solutions(True), solutions(False)
    assert ours.keys() == expected.keys() == {"few", "many"}
    for name, each in ours.items():
        own, other = each.outcome, expected[name].outcome
        torch.testing.assert_close(own.change, other.change, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(each.metric, expected[name].metric, rtol=1e-8, atol=1e-8)
        assert list(own.after) == pytest.approx(list(other.after), rel=1e-6, abs=1e-10)
        assert own.objective_after == pytest.approx(other.objective_after, rel=1e-6)
        assert own.width == other.width == WIDTH


def test_the_span_is_used_where_rows_are_few() -> None:
    assert common_span("layer", [kept(6, 1), kept(9, 2)]).basis.shape == (WIDTH, 15)  # type: ignore[union-attr]
    assert common_span("layer", [kept(20, 1), kept(10, 2)]) is None
    assert common_span("layer", [kept(6, 1), dense(kept(9, 2))]) is None
    broken = KeptRows(torch.full((2, WIDTH), torch.nan), 2, 1e-7)
    with pytest.raises(MixshowError, match=r"'layer': .*no numbers"):
        common_span("layer", [kept(6, 1), broken])


@pytest.mark.parametrize("apart", [1.0, 1e-6, 0.0])
def test_a_span_is_orthonormal_however_near_rows_are(apart: float) -> None:
    """Rows that hardly differ lose too many digits in their products, and equal ones have no factor of them."""
    first = kept(6, 1).kept
    inputs = [KeptRows(first, 60, 1e-7), KeptRows(first + apart * kept(6, 2).kept, 6, 1e-7), kept(3, 3)]
    span = common_span("layer", inputs)
    assert span is not None
    torch.testing.assert_close(span.basis.mT @ span.basis, torch.eye(15).double(), rtol=0, atol=1e-8)
    for each, own, moment in zip(inputs, span.coordinates, span.formed(inputs)):
        torch.testing.assert_close(own @ span.basis.mT, each.kept.double(), rtol=0, atol=1e-9)
        torch.testing.assert_close(span.basis @ moment.moment @ span.basis.mT, each.moment, rtol=1e-8, atol=1e-8)
        assert moment.rows == each.rows


def test_a_reservoir_keeps_all_rows_while_there_is_room() -> None:
    reservoir = Reservoir(10, 0, "layer")
    x = random(7, 3, seed=1)
    for part in x.split(2):
        reservoir.put(part)
    found = reservoir.statistics(1e-7)
    assert torch.equal(found.kept, x.float()) and found.rows == 7


def test_a_reservoir_keeps_a_uniform_sample() -> None:
    """Every row is as likely, wherever it came in; the same seed keeps the same rows."""
    counts = torch.zeros(40)
    for seed in range(400):
        reservoir = Reservoir(10, seed, "layer")
        for part in torch.arange(40.0)[:, None].split(7):
            reservoir.put(part)
        found = reservoir.statistics(1e-7).kept[:, 0].long()
        assert len(found.unique()) == 10
        counts[found] += 1
    # 400 draws with probability 1/4: standard deviation 8.7
    assert counts.sum() == 4000 and (counts - 100).abs().max() < 40
    assert abs(float(counts[:10].mean() - counts[30:].mean())) < 12


def test_wide_inputs_are_recorded_as_rows() -> None:
    conv, narrow = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 3, 1)
    model = nn.Sequential(narrow, conv)
    x = torch.randn(2, 2, 5, 5)
    for limit in (100, 20):
        modules = {"narrow": narrow, "conv": conv}
        with (
            torch.no_grad(),
            StatisticsRecorder(modules, extended=["conv"], sampling=RowSampling(27, limit)) as recorder,
        ):
            model(x)
        found = recorder.statistics()
        assert isinstance(found["narrow"], LayerStatistics) and found["narrow"].rows == 50
        own = found["conv"]
        assert isinstance(own, KeptRows) and own.resolution == SINGLE_RESOLUTION
        assert own.kept.shape == (min(limit, 50), 28) and own.rows == 50 and bool((own.kept[:, -1] == 1).all())
        rows = input_rows(conv, narrow(x).detach())
        if limit == 100:
            torch.testing.assert_close(own.kept[:, :-1], rows)
        else:
            assert all(bool((rows == row).all(1).any()) for row in own.kept[:, :-1])
    assert not conv._forward_pre_hooks
