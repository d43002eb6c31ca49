"""Fusions that were interrupted while solving go on where they were, and end as if nothing had happened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mixshow.cli.main import EXIT_INTERRUPTED, EXIT_USER_ERROR, main
from mixshow.core.files import read_safetensors
from mixshow.fusion import fuse as fuse_module
from mixshow.fusion import solve
from mixshow.fusion.solved_layers import Solved, SolvedLayers
from mixshow.fusion.solvers import Outcome, Status
from mixshow.fusion.solvers.outcome import ConstraintFit
from mixshow.models import Base
from mixshow.recipes import fuse_statistics
from tests.fusion.test_statistics_command import FUSE, stage, weights  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("stage")
LATE = [*FUSE, "output=late"]


class Counted:
    """Counts parts of layers that are solved; an interruption after some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.parts, before = 0, solve._solve_part
        monkeypatch.setattr(solve, "_BYTES", 1)  # a part for every input

        def solve_part(*arguments: Any) -> Any:
            if self.parts == stop_after:
                raise KeyboardInterrupt
            self.parts += 1
            return before(*arguments)

        monkeypatch.setattr(solve, "_solve_part", solve_part)


def run(monkeypatch: pytest.MonkeyPatch, arguments: list[str], stop_after: int | None = None) -> int:
    """Parts that a fusion solves before it ends, or is interrupted as it should be."""
    with monkeypatch.context() as patch:
        counted = Counted(patch, stop_after)
        assert main(arguments) == (0 if stop_after is None else EXIT_INTERRUPTED), arguments
    return counted.parts


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id=""),
        pytest.param(["solver.objective=huber", "solver.iterations=3"], id="rows", marks=pytest.mark.slow),
        pytest.param(["method=constrained"], id="hard", marks=pytest.mark.slow),
    ],
)
def test_solved_layers_are_not_solved_again(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(monkeypatch, [*FUSE, *options])
    done = run(monkeypatch, [*LATE, *options], stop_after=whole // 2)
    assert len(list(Path(".late.statistics").glob("solved-*"))) == done == whole // 2
    assert run(monkeypatch, [*LATE, *options]) == whole - done
    expected, found = weights("fused"), weights("late")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert not list(Path().glob(".*"))


def test_what_was_solved_otherwise_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, LATE, stop_after=3) == 3
    for changed in (
        "solver.ridge=0.1",
        "solver.name=exact",
        "anchor.weight=0.5",
        "statistics.shrinkage=0.1",
        "concepts=[{file: duck.safetensors}, {file: fox.safetensors, weight: 3}]",
        "concepts=[{file: fox.safetensors, weight: 2}, {file: duck.safetensors}]",
    ):
        run(monkeypatch, [*LATE, changed], stop_after=0)  # the first part is to be solved


def test_layers_whose_metric_is_missing_are_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ["format=lora", "lora.rank=2"]
    run(monkeypatch, LATE, stop_after=3)
    done = run(monkeypatch, [*LATE, *network], stop_after=4)
    assert run(monkeypatch, [*FUSE, *network]) == done + run(monkeypatch, [*LATE, *network])
    one, other = (read_safetensors(f"{name}/concept.safetensors")[0] for name in ("fused", "late"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_with_all_layers_solved_their_rows_are_not_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    rows = [*LATE, "solver.objective=huber"]
    with monkeypatch.context() as patch:
        patch.setattr("mixshow.recipes.fuse.write_fused", stop)
        assert main(rows) == EXIT_INTERRUPTED
    monkeypatch.setattr(fuse_module, "keep_inputs", stop)
    assert main(rows) == 0


def test_other_numbers_of_rows_are_recorded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = [*LATE, "statistics.moment_width=16", "statistics.kept_rows=8"]
    recorded: list[Any] = []
    record_all = fuse_statistics.record_all

    def counted(base: Base, member: Any, *rest: Any) -> Any:
        recorded.append(member)
        return record_all(base, member, *rest)

    monkeypatch.setattr(fuse_statistics, "record_all", counted)
    for options, times in (
        (wide, 3),
        (wide, 0),
        ([*wide, "statistics.kept_rows=9"], 3),
        ([*wide, "statistics.moment_width=20"], 3),
        ([*LATE, "statistics.kept_rows=9"], 3),  # no input is as wide
        (LATE, 0),
    ):
        recorded.clear()
        run(monkeypatch, options, stop_after=0)
        assert len(recorded) == times, options


def test_solutions_come_back_as_they_were(tmp_path: Path) -> None:
    fit = ConstraintFit(3, 2, float("inf"), 0.1)
    first = Outcome("a", torch.randn(3, 2).double(), Status.SOLVED, 0, 2, 2, 1 / 3, [0.1], [0.2], 1e-300, 3.0, fit)
    second = dataclasses.replace(
        first, name="b", status=Status.ITERATION_LIMIT, constraints=None, basis=torch.randn(5, 3).double()
    )
    metric = torch.randn(2, 2).double()
    kept = SolvedLayers(tmp_path / "work", "key")
    assert kept.read(["a"], metrics=False) == {}
    kept.write([Solved(first, metric), Solved(second, metric)])
    kept.write([Solved(dataclasses.replace(first, name="c"))])
    found = kept.read(["a", "b", "c"], metrics=False)
    assert found.keys() == {"a", "b", "c"} and found["a"].metric is None
    for expected in (first, second):
        own = found[expected.name].outcome
        assert torch.equal(own.change, expected.change) and own.change.dtype == torch.float64
        held = {"coordinates": expected.coordinates, "basis": expected.basis}
        assert (own.basis is None) == (expected.basis is None)
        assert dataclasses.replace(own, **held).__dict__ == expected.__dict__
    found = kept.read(["a", "b", "c"], metrics=True)
    assert found.keys() == {"a", "b"} and found["a"].metric is found["b"].metric
    assert torch.equal(found["a"].metric, metric)  # type: ignore[arg-type]
    assert SolvedLayers(tmp_path / "work", "other").read(["a"], metrics=False) == {}
    for file in (tmp_path / "work").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert kept.read(["a", "b", "c"], metrics=False) == {}


def test_a_subspace_is_solved_by_squares_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FUSE, "method=subspace", "solver.objective=cosine"]) == EXIT_USER_ERROR
    assert "solver.objective: cosine is for method=solve or constrained" in capsys.readouterr().err
