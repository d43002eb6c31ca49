"""Distilling that was interrupted goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mixshow.cli.main import EXIT_INTERRUPTED, main
from mixshow.fusion import distill as distill_module
from mixshow.fusion import distill_checkpoint
from mixshow.fusion.baselines import weight_average
from mixshow.fusion.distill import distill
from mixshow.fusion.distill_checkpoint import Checkpoints
from mixshow.fusion.factors import as_low_rank
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.heldout import HeldOut, HeldOutPlan
from mixshow.fusion.lessons import DistillPlan
from mixshow.fusion.members import Member
from mixshow.fusion.stopping import EarlyStopping
from mixshow.models import Base
from tests.fusion.test_fuse import hooks, state
from tests.fusion.test_statistics_command import FUSE, stage, weights  # noqa: F401 (a fixture)
from tests.tiny import tiny_concept

PLAN = DistillPlan(
    steps=6, rate=3e-3, batch_size=2, rounds=2, prompts=["a photo of {concept}", "{concept} in the rain"],
    captions=["a dog"], walk_steps=2, look_every=2,
)  # fmt: skip
VALIDATION = HeldOutPlan(prompts=["a picture of {concept}"], captions=["a boy"], steps=1)


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=i)) for i, name in enumerate(("duck", "fox"))]


def interrupted_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """No step is taken beyond so many."""
    rate_at = distill_module._rate_at

    def rate(number: int, plan: DistillPlan) -> float:
        if number == step:
            raise KeyboardInterrupt
        return rate_at(number, plan)

    patch.setattr(distill_module, "_rate_at", rate)


@pytest.mark.parametrize(  # within the first round; before the first step, at the end of the first round, later
    "step", [2, *(pytest.param(step, marks=pytest.mark.slow) for step in (0, 3, 4))]
)
@pytest.mark.parametrize("stops", [False, True])  # and with factors that move, not whole weights
def test_what_goes_on_ends_as_what_was_not_interrupted(
    step: int, stops: bool, tiny: Base, members: list[Member], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, factors = weight_average(tiny, members), None
    if stops:
        start, factors = as_low_rank(tiny, members, start)

    def refined(checkpoints: Checkpoints | None) -> Fusion:
        stopping: Any = EarlyStopping(HeldOut(tiny, members, VALIDATION), patience=9) if stops else None
        return distill(tiny, members, start, PLAN, factors=factors, stopping=stopping, checkpoints=checkpoints)

    whole = refined(None)
    before, hooks_before = state(tiny), hooks(tiny)
    with monkeypatch.context() as patch:
        interrupted_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            refined(Checkpoints(tmp_path / "work", "key", seconds=0.0))
    after = state(tiny)
    assert all(torch.equal(after[key], before[key]) for key in before) and hooks(tiny) == hooks_before
    taken: list[int] = []
    with monkeypatch.context() as patch:
        rate_at = distill_module._rate_at
        patch.setattr(distill_module, "_rate_at", lambda number, plan: taken.append(number) or rate_at(number, plan))
        found = refined(Checkpoints(tmp_path / "work", "key"))
    assert taken == list(range(step, PLAN.steps))
    assert all(torch.equal(change, whole.changes[path]) for path, change in found.changes.items())
    assert found.refining == whole.refining and bool(whole.refining) == stops
    assert Checkpoints(tmp_path / "work", "other").read() is None


def test_where_a_look_ended_it_no_step_is_taken_again(
    tiny: Base, members: list[Member], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = weight_average(tiny, members)
    plan = dataclasses.replace(PLAN, rate=1e-9)  # nothing becomes better

    def refined(seconds: float) -> Fusion:
        stopping: Any = EarlyStopping(HeldOut(tiny, members, VALIDATION), patience=1, tolerance=0.5)
        return distill(tiny, members, start, plan, stopping=stopping, checkpoints=Checkpoints(tmp_path, "key", seconds))

    first = refined(0.0)
    assert [look["at"] for look in first.refining["looks"]] == [0, 2]
    interrupted_at(2, monkeypatch)
    assert refined(0.0).refining == first.refining


def test_nothing_is_written_before_its_time(tiny: Base, members: list[Member], tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, steps=2, rounds=1)
    distill(tiny, members, weight_average(tiny, members), plan, checkpoints=Checkpoints(tmp_path, "key"))
    assert not list(tmp_path.iterdir())


def test_a_damaged_state_begins_anew(tiny: Base, members: list[Member], tmp_path: Path) -> None:
    plan, start = dataclasses.replace(PLAN, steps=2), weight_average(tiny, members)
    expected = distill(tiny, members, start, plan, checkpoints=Checkpoints(tmp_path, "key", seconds=0.0))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"distilled-key.pt", "distilled-key-lessons-1.safetensors"}  # those before are gone
    for name in names:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert Checkpoints(tmp_path, "key").read() is None
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "distilled-key.pt").write_bytes(b"")
    found = distill(tiny, members, start, plan, checkpoints=Checkpoints(tmp_path, "key"))
    assert all(torch.equal(change, expected.changes[path]) for path, change in found.changes.items())


@pytest.mark.slow
def test_ctrl_c_keeps_the_steps_that_were_taken(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Through the command: solved layers and distilling, and other options that find nothing of theirs."""
    distilled = ["refine.method=distill", "refine.steps=4", "refine.prompts=['{concept}']", "refine.rounds=2"]
    assert main([*FUSE, *distilled]) == 0
    rate_at = distill_module._rate_at

    def rate(number: int, plan: DistillPlan) -> float:
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return rate_at(number, plan)

    late = [*FUSE, "output=late", *distilled]
    with monkeypatch.context() as patch:
        patch.setattr(distill_module, "_rate_at", rate)
        assert main(late) == EXIT_INTERRUPTED
    [kept] = Path(".late.statistics").glob("distilled-*.pt")
    assert distill_checkpoint.read_pickled_weights(kept)["step"] == 3
    assert steps_taken(monkeypatch, [*late, "refine.seed=3"], stop=True) == [0]
    assert steps_taken(monkeypatch, late, stop=False) == [3]
    expected, found = weights("fused"), weights("late")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert not list(stage.glob(".*"))


def steps_taken(monkeypatch: pytest.MonkeyPatch, arguments: list[str], *, stop: bool) -> list[int]:
    """Steps that a fusion takes; it is stopped before the first one is over where asked to."""
    taken: list[int] = []
    with monkeypatch.context() as patch:
        rate_at = distill_module._rate_at

        def rate(number: int, plan: DistillPlan) -> float:
            taken.append(number)
            if stop:
                raise KeyboardInterrupt
            return rate_at(number, plan)

        patch.setattr(distill_module, "_rate_at", rate)
        assert main(arguments) == (EXIT_INTERRUPTED if stop else 0)
    return taken
