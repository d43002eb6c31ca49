"""Layers solved some at a time and from files; what several processes recorded of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixshow.core.processes import Processes
from mixshow.fusion import sharing, solve
from mixshow.fusion.origin import Origin
from mixshow.fusion.sharing import joined_rows, summed
from mixshow.fusion.solve import solved
from mixshow.fusion.solved_layers import Solved, SolvedLayers
from mixshow.fusion.solvers import LBFGS
from mixshow.fusion.statistics import SINGLE_RESOLUTION, LayerStatistics
from mixshow.fusion.statistics_file import open_statistics, write_statistics
from mixshow.fusion.wide import KeptRows

NAMES = ("q", "k", "out")
ORIGIN = Origin("", "", None, (), 1.0, 1.0, (), (), True, 1, 8, 8, 0)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def statistics(seed: int) -> dict[str, LayerStatistics]:
    """Of three layers, two of which read the same."""
    shared, own = (LayerStatistics.of_rows(random(20, 6, seed=seed + i)) for i in range(2))
    return {"q": shared, "k": shared, "out": own}


def solutions(concepts: list[Any], **options: Any) -> dict[str, Solved]:
    deltas = [{name: random(5, 6, seed=10 * i + j) for j, name in enumerate(NAMES)} for i in range(2)]
    found = solved(deltas, concepts, None, LBFGS(precondition=True), ridge=1e-2, weights=[1, 2], **options)
    assert [each.outcome.name for each in found] == list(NAMES)
    return {each.outcome.name: each for each in found}


def test_what_is_read_one_at_a_time_is_solved_as_what_is_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concepts = [statistics(1), statistics(5)]
    stored = []
    for number, each in enumerate(concepts):
        write_statistics(tmp_path / f"{number}.stats.safetensors", each, ORIGIN)
        stored.append(open_statistics(tmp_path / f"{number}.stats.safetensors").layers)
    together = solutions(stored)
    monkeypatch.setattr(solve, "_BYTES", 1)
    for name, alone in solutions(stored).items():
        assert torch.equal(alone.outcome.change, together[name].outcome.change)
        assert alone.outcome.after == together[name].outcome.after
    for name, at_hand in solutions(concepts).items():
        torch.testing.assert_close(at_hand.outcome.change, together[name].outcome.change)


def test_processes_solve_different_layers_and_have_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "_BYTES", 1)  # a part for every input
    concepts, shares = [statistics(1), statistics(5)], []
    monkeypatch.setattr(Processes, "gathered", lambda self, own: shares.append(own) or [own])
    alone = solutions(concepts)
    shares.clear()
    for index in range(2):
        with pytest.raises(KeyError):  # what the other process would have said is missing
            solutions(concepts, processes=Processes(index, 2))
    assert [set(share) for share in shares] == [{"q", "k"}, {"out"}]
    for share in shares:
        assert all(torch.equal(each.outcome.change, alone[name].outcome.change) for name, each in share.items())


def test_what_processes_left_is_not_solved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "_BYTES", 1)
    concepts, kept = [statistics(1), statistics(5)], SolvedLayers(tmp_path, "key")
    alone = solutions(concepts, keep_metrics=True)
    for index in range(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Processes, "gathered", interrupt)  # what one solved is written before the others are asked
            solutions(concepts, processes=Processes(index, 2), kept=kept, keep_metrics=True)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(solve, "_solve_part", interrupt)
    found = solutions(concepts, known=kept.read(NAMES, metrics=True), keep_metrics=True)
    for name, each in found.items():
        assert torch.equal(each.outcome.change, alone[name].outcome.change)
        assert torch.equal(each.metric, alone[name].metric)  # type: ignore[arg-type]


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_layers_that_only_some_processes_recorded_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process had no picture, so that it has fewer layers."""
    whole = statistics(1)
    fewer = {"q": statistics(5)["q"]}
    monkeypatch.setattr(Processes, "gathered", lambda _, own: [sharing._outlines(fewer), own])
    moments = iter([fewer["q"].moment])
    monkeypatch.setattr(Processes, "add", lambda _, tensor: tensor.add_(next(moments, torch.zeros(6, 6))))
    found = summed(whole, Processes(1, 2), torch.device("cpu"), 8)
    assert found.keys() == whole.keys()
    torch.testing.assert_close(found["q"].moment, (whole["q"] + fewer["q"]).moment)
    torch.testing.assert_close(found["k"].moment, whole["k"].moment)
    torch.testing.assert_close(found["out"].moment, whole["out"].moment)
    assert (found["q"].rows, found["out"].rows) == (whole["q"].rows + fewer["q"].rows, whole["out"].rows)


@pytest.mark.parametrize("empty", [False, True])
def test_statistics_of_processes_add(monkeypatch: pytest.MonkeyPatch, empty: bool) -> None:
    """The second process may have had no prompt at all."""
    first, second = statistics(1), {} if empty else statistics(5)
    monkeypatch.setattr(Processes, "gathered", lambda _, own: [own, sharing._outlines(second)])
    moments = iter([] if empty else [second["q"].moment, second["out"].moment])
    monkeypatch.setattr(Processes, "add", lambda _, tensor: tensor.add_(next(moments, torch.zeros(6, 6))))
    found = summed(first, Processes(0, 2), torch.device("cpu"), 8)
    assert found["q"] is found["k"] is not found["out"]
    for name, each in found.items():
        expected = first[name] if empty else first[name] + second[name]
        torch.testing.assert_close(each.moment, expected.moment)
        assert each.rows == expected.rows
    assert first["q"].rows == 20  # the process's own are as they were


def test_rows_of_processes_are_joined_by_their_share() -> None:
    parts = [KeptRows(torch.full((6, 3), float(i)), rows, SINGLE_RESOLUTION) for i, rows in enumerate((6, 6))]
    assert joined_rows(parts, 12, "layer", torch.device("cpu")).kept.shape == (12, 3)
    parts = [KeptRows(torch.full((6, 3), float(i)), rows, SINGLE_RESOLUTION) for i, rows in enumerate((10, 20))]
    found = joined_rows(parts, 6, "layer", torch.device("cpu"))
    assert found.rows == 30 and found.kept[:, 0].tolist() == [0, 0, 1, 1, 1, 1]
