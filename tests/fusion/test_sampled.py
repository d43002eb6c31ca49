"""Objectives that are no squares: gradients, limits in which the answer is known, and what they are for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.fusion.build import build_problems
from mixshow.fusion.collect import Collection
from mixshow.fusion.fuse import keep_inputs, record_stage
from mixshow.fusion.layers import Stage
from mixshow.fusion.losses import Cosine
from mixshow.fusion.members import Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.rows import RowSample, RowSampler, priorities
from mixshow.fusion.samples import SampledProblem, sampled_problems
from mixshow.fusion.solvers import LBFGS, Exact, Sampled, Status
from mixshow.fusion.solvers.sampled import _along
from mixshow.fusion.statistics import LayerStatistics
from mixshow.models import Base
from tests.fusion.test_fuse import hooks
from tests.fusion.test_recipe import stage  # noqa: F401
from tests.fusion.test_solvers import OUT, WIDTH, delta, problem, rows
from tests.tiny import tiny_concept

WEIGHT = 2 * delta(50)
Kind = Literal["huber", "cosine"]


def sampled(
    inputs: list[Tensor], deltas: list[Tensor], anchor: Tensor | None = None, **options: object
) -> SampledProblem:
    module = nn.Linear(WIDTH, OUT, bias=False)
    module.weight.data = WEIGHT
    plain = problem(inputs, deltas, anchor, **options)
    [built] = sampled_problems([plain], [{"layer": x} for x in inputs], {"layer": module})
    assert isinstance(built, SampledProblem)
    return built


def anchored(**options: object) -> SampledProblem:
    return sampled(
        [rows(20, 1), rows(30, 2)], [delta(3), delta(4)], rows(25, 5),
        **{"weights": [1.0, 2.0], "anchor_weight": 0.2, "ridge": 1e-3, **options},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["huber", "cosine"])
@pytest.mark.parametrize("size", [0.3, 1.0, 3.0])
def test_gradients_are_those_of_finite_differences(kind: Kind, size: float) -> None:
    case = anchored()
    loss = Sampled(kind).loss(case, delta(6))
    assert loss is not None
    here, step = size * delta(7), 1e-5
    gradient = case.gradient_of(loss, here)
    slopes = torch.zeros_like(here)
    for index in range(here.numel()):
        move = torch.zeros_like(here)
        move.view(-1)[index] = step
        difference = case.value_of(loss, here + move) - case.value_of(loss, here - move)
        slopes.view(-1)[index] = difference / (2 * step)
    torch.testing.assert_close(gradient, slopes, rtol=1e-6, atol=1e-6 * float(gradient.abs().max()))
    along = _along(case, loss, here, delta(8))
    for t in (0.0, 0.7):
        value, slope = along(t)
        assert value == pytest.approx(case.value_of(loss, here + t * delta(8)))
        assert slope == pytest.approx(float((case.gradient_of(loss, here + t * delta(8)) * delta(8)).sum()))


@pytest.mark.parametrize("rank", [WIDTH, 5])
@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_huber_with_a_huge_delta_is_squares(rank: int, ridge: float) -> None:
    inputs = [rows(20, 1, rank=rank), rows(30, 1, rank=rank)]
    case = sampled(inputs, [delta(3), delta(4)], rows(25, 1, rank=rank), anchor_weight=0.2, ridge=ridge)
    start = LBFGS(1, precondition=False)  # far from the solution, so that the steps are Sampled's
    [outcome] = Sampled("huber", 1e6, start, tolerance=1e-9).solve([case])
    [squares] = Exact().solve([case])
    assert (outcome.change - squares.change).norm() <= 1e-6 * squares.change.norm()
    assert outcome.objective_after == pytest.approx(squares.objective_after, rel=1e-9)
    assert outcome.objective_before == pytest.approx(squares.objective_before, rel=1e-9)
    assert outcome.status is Status.CONVERGED and outcome.iterations > 0


@pytest.mark.parametrize("kind", ["huber", "cosine"])
def test_the_solution_is_a_minimum(kind: Kind) -> None:
    case, solver = anchored(), Sampled(kind)
    [outcome], [squares] = solver.solve([case]), Exact().solve([case])
    assert outcome.status is Status.CONVERGED
    loss = solver.loss(case, solver.start.solve([case])[0].change)
    assert loss is not None and outcome.objective_after == pytest.approx(case.value_of(loss, outcome.change))
    start = torch.zeros_like(outcome.change)
    assert case.gradient_of(loss, outcome.change).norm() <= 1e-5 * case.gradient_of(loss, start).norm()
    assert outcome.objective_after < case.value_of(loss, squares.change)
    for seed in range(20):
        assert case.value_of(loss, outcome.change + 1e-2 * delta(seed)) > outcome.objective_after


def test_huber_follows_the_many_where_a_few_rows_want_something_else() -> None:
    drawn = torch.randn(66, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    case = sampled([drawn], [delta(3)])
    odd = case.wanted.clone()
    odd[60:] += 50 * drawn[60:] @ delta(9).T  # as if another network had answered there
    case.__dict__["wanted"] = odd
    start = torch.linalg.lstsq(drawn, odd).solution.T
    distances = [float((start - delta(3)).norm())]
    for size in (1.0, 0.1):
        solver = Sampled("huber", size)
        loss = solver.loss(case, start)
        assert loss is not None
        change, _, converged = solver.minimise(case, loss, start)
        assert converged
        distances.append(float((change - delta(3)).norm()))
    assert distances[1] < 0.5 * distances[0] and distances[2] < 0.05 * distances[0]


def test_cosine_is_zero_at_the_truth_and_blind_to_size() -> None:
    case = sampled([rows(40, 1)], [delta(3)])
    loss = Sampled("cosine").loss(case, delta(3))
    assert isinstance(loss, Cosine)
    scale = case.value_of(loss, torch.zeros(OUT, WIDTH, dtype=torch.float64))
    assert scale > 0 and abs(case.value_of(loss, delta(3))) < 1e-12 * scale
    assert case.gradient_of(loss, delta(3)).norm() < 1e-10 * scale
    twice = 2 * (WEIGHT + delta(3)) - WEIGHT
    assert abs(case.value_of(loss, twice)) < 1e-12 * scale
    [outcome] = Sampled("cosine").solve([case])
    assert abs(outcome.objective_after) < 1e-9 * outcome.objective_before and outcome.status is Status.CONVERGED


def test_small_angles_count_as_their_squared_errors_do() -> None:
    # rows of equal outputs' size, moved across their direction
    before = torch.zeros(2, 2, dtype=torch.float64)
    wanted = torch.tensor([[3.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    loss = Cosine(before, wanted, 2 * 9.0)
    error = torch.tensor([[0.0, 1e-3], [2e-3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(loss(wanted + error)[0], error.square().sum(1), rtol=1e-5, atol=0.0)
    values, slopes = loss(-before)  # no outputs have no direction
    assert not values.any() and not slopes.any()


def test_what_is_fitted_already_and_what_has_no_rows_is_left_at_the_squares() -> None:
    case = sampled([rows(40, 1)], [delta(3)])
    [outcome], [squares] = Sampled("huber").solve([case]), Sampled("huber").start.solve([case])
    assert torch.equal(outcome.change, squares.change)
    scales = LayerStatistics.of_rows(rows(40, 1), elementwise=True)
    [norm] = build_problems([{"norm": torch.ones(WIDTH, 1)}], [{"norm": scales}], weights=[1.0])
    assert sampled_problems([norm], [{}], {}) == [norm]
    assert Sampled("cosine").solve([norm])[0].status is Status.CONVERGED


def test_rows_are_the_same_however_they_come() -> None:
    everything = torch.arange(1000.0)[:, None]
    samples = []
    for size in (1000, 7, 64):
        sample = RowSample(limit=100, seed=3)
        for part in everything.split(size):
            sample.add(part)
        samples.append(sample.rows)
    assert all(torch.equal(each, samples[0]) for each in samples)
    assert len(samples[0].unique()) == 100 and 400 < samples[0].mean() < 600
    other = RowSample(limit=100, seed=4)
    other.add(everything)
    assert not torch.equal(other.rows, samples[0])
    few = RowSample(limit=100, seed=3)
    few.add(everything[:5])
    assert sorted(few.rows.flatten().tolist()) == [0, 1, 2, 3, 4]


def test_priorities_are_splitmix64() -> None:
    """Against whole numbers of any length."""
    mask, offset = (1 << 64) - 1, int(priorities(0, 1, 0)[0])
    assert torch.equal(priorities(0, 10, 0)[4:], priorities(4, 6, 0)) and priorities(0, 1, 1)[0] != offset

    def reference(number: int, start: int) -> int:
        mixed = (start + 0x9E3779B97F4A7C15 * number) & mask
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        return mixed ^ (mixed >> 31)

    from mixshow.core.seeding import derived_seed

    expected = [reference(number, derived_seed(0, "rows")) for number in range(1, 6)]
    assert [int(each) & mask for each in priorities(0, 5, 0)] == expected


def test_hooks_come_off_after_an_error() -> None:
    layer = nn.Linear(3, 2)
    with pytest.raises(ZeroDivisionError), RowSampler({"layer": layer}, 4, extended=["layer"]) as sampler:
        layer(torch.ones(6, 3))
        raise ZeroDivisionError
    assert not layer._forward_pre_hooks and torch.equal(sampler.rows()["layer"], torch.ones(4, 4))


@pytest.mark.parametrize("every_position", [True, False])
def test_all_rows_of_a_model_have_the_recorded_moments(tiny: Base, every_position: bool) -> None:
    members, before = [Member(tiny_concept(tiny, "duck", seed=0))], hooks(tiny)
    collection = Collection(
        text_prompts=["{concept}", "a photo of {concept}"], picture_prompts=["{concept}"], steps=1,
        every_position=every_position, rows=10**6,
    )  # fmt: skip
    few = dataclasses.replace(collection, rows=3)
    for stage_ in Stage:
        [statistics] = record_stage(tiny, members, stage_, collection, Objective()).concepts
        [kept] = keep_inputs(tiny, members, stage_, collection, Objective()).samples
        [some] = keep_inputs(tiny, members, stage_, few, Objective()).samples
        assert kept.keys() == statistics.keys()
        for path, own in statistics.items():
            every = kept[path].double()
            assert len(every) == own.rows and len(some[path]) == min(3, own.rows)
            torch.testing.assert_close(every.T @ every, own.moment, rtol=1e-4, atol=1e-4 * float(own.moment.max()))
    assert hooks(tiny) == before


@pytest.mark.slow
def test_the_command_minimises_them(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    quick = ["refine.method=none", "report.heldout=false", "statistics.rows=32"]
    values = {}
    for kind in ("squares", "huber", "cosine"):
        assert main(["fuse", "fuse.yml", *quick, f"solver.objective={kind}"]) == 0
        report = json.loads((stage / "fused" / "fusion_report.json").read_text())
        assert {layer["status"] for layer in report["layers"].values()} == {"converged"}
        values[kind] = [layer["change_norm"] for layer in report["layers"].values()]
    assert values["squares"] != values["huber"] != values["cosine"]
    assert main(["fuse", "fuse.yml", *quick, "solver.objective=huber", "solver.name=exact"]) == EXIT_USER_ERROR
    assert "minimised by name=lbfgs" in capsys.readouterr().err
    assert main(["fuse", "fuse.yml", *quick, "solver.objective=cosine", "format=lora"]) == EXIT_USER_ERROR
    assert "solver.objective=cosine gives full-rank changes" in capsys.readouterr().err
