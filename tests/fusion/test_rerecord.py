"""Solving again on the fused model's own inputs: what is recorded, when it stops, what stays behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.config.fuse import load_fuse_options
from mixshow.fusion import prompts
from mixshow.fusion.baselines import weight_average
from mixshow.fusion.collect import text_statistics
from mixshow.fusion.distill import distill
from mixshow.fusion.fuse import fuse, record_stage
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.heldout import HeldOut, HeldOutPlan, HeldOutScores
from mixshow.fusion.layers import Stage
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.objective import Objective
from mixshow.fusion.rerecord import rerecord
from mixshow.fusion.stopping import EarlyStopping
from mixshow.models import Base, encode_prompts
from tests.fusion.test_distill import PLAN
from tests.fusion.test_fuse import EXACT, SMALL, hooks, state
from tests.fusion.test_recipe import stage  # noqa: F401
from tests.tiny import tiny_concept

OBJECTIVE = Objective(1e-2, 0.3, ["", "a photo of a dog"])


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=i)) for i, name in enumerate(("duck", "fox"))]


@pytest.fixture(scope="module")
def solved(tiny: Base, members: list[Member]) -> Fusion:
    return fuse(tiny, members, SMALL, OBJECTIVE, EXACT)


class Scripted(HeldOut):
    """Held-out errors from a list."""

    def __init__(self, errors: Sequence[float]) -> None:
        self.errors = list(errors)

    def score(self, fused: Base) -> HeldOutScores:
        error = self.errors.pop(0)
        return HeldOutScores({"duck": error - 0.1, "fox": error + 0.1}, {}, {}, 0.0)


def test_inputs_are_those_of_the_fused_model(tiny: Base, members: list[Member], solved: Fusion) -> None:
    recorded = record_stage(tiny, members, Stage.TEXT, SMALL, OBJECTIVE, through=solved)
    assert recorded.anchor is not None
    layers = changed_layers(tiny, members, Stage.TEXT)
    with solved.in_place(tiny) as fused:
        for concept, name in zip(recorded.concepts, ("<duck1> <duck2>", "<fox1> <fox2>")):
            texts = [text.replace("{concept}", name) for text in SMALL.text_prompts]
            expected = text_statistics(fused, layers, texts, padded=True)
            for path, own in expected.items():
                assert torch.equal(concept[path].moment, own.moment)
        states = encode_prompts(fused, [text.replace("{concept}", name) for text in SMALL.text_prompts])
        ordinary = text_statistics(fused, layers, list(OBJECTIVE.captions), padded=True)
    assert all(torch.equal(recorded.anchor[path].moment, own.moment) for path, own in ordinary.items())
    recorded = record_stage(tiny, members, Stage.KEY_VALUE, SMALL, OBJECTIVE, through=solved)
    for layer in changed_layers(tiny, members, Stage.KEY_VALUE):
        rows = states[:, layer.text_layer].flatten(0, 1).double()
        torch.testing.assert_close(recorded.concepts[1][layer.path].moment, rows.T @ rows, rtol=1e-5, atol=1e-6)


def test_a_pass_solves_again_and_leaves_the_base_as_it_was(tiny: Base, members: list[Member], solved: Fusion) -> None:
    before, hooks_before = state(tiny), hooks(tiny)
    again = rerecord(tiny, members, solved, SMALL, OBJECTIVE, EXACT, passes=1)
    after = state(tiny)
    assert all(torch.equal(after[key], before[key]) for key in before) and hooks(tiny) == hooks_before
    assert again.changes.keys() == solved.changes.keys() == again.outcomes.keys()
    first = changed_layers(tiny, members, Stage.TEXT)[0].path  # nothing before it was fused: its inputs are the same
    moved = {
        path: float((change - solved.changes[path]).norm() / change.norm()) for path, change in again.changes.items()
    }
    assert moved.pop(first) < 1e-6 and max(moved.values()) > 1e-3
    twice = rerecord(tiny, members, solved, SMALL, OBJECTIVE, EXACT, passes=2)
    onwards = rerecord(tiny, members, again, SMALL, OBJECTIVE, EXACT, passes=1)
    assert all(torch.equal(change, onwards.changes[path]) for path, change in twice.changes.items())


def test_changes_of_other_layers_stay(tiny: Base, members: list[Member]) -> None:
    start = weight_average(tiny, members)  # which has no outcomes
    unet_only = [dataclasses.replace(member, text_encoder=0.0) for member in members]
    again = rerecord(tiny, unet_only, start, SMALL, OBJECTIVE, EXACT, passes=1)
    assert again.changes.keys() == start.changes.keys() > again.outcomes.keys()
    path = changed_layers(tiny, members, Stage.TEXT)[0].path
    assert torch.equal(again.changes[path], start.changes[path])


def test_one_concept_alone_is_a_fixed_point(tiny: Base, members: list[Member]) -> None:
    """Its own change is the solution on any inputs, so that recording them through itself changes nothing."""
    only, objective = members[:1], Objective(1e-10)
    own = fuse(tiny, only, SMALL, objective, EXACT)
    again = rerecord(tiny, only, own, SMALL, objective, EXACT, passes=1)
    assert all(outcome.after[0] <= 1e-6 * outcome.before[0] for outcome in again.outcomes.values())


def test_the_best_pass_is_kept_and_patience_ends_it(tiny: Base, members: list[Member], solved: Fusion) -> None:
    stopping = EarlyStopping[Fusion](Scripted([0.9, 0.7, 0.8, 0.75, 0.1]), patience=2)
    best = rerecord(tiny, members, solved, SMALL, OBJECTIVE, EXACT, passes=4, stopping=stopping)
    one = rerecord(tiny, members, solved, SMALL, OBJECTIVE, EXACT, passes=1)
    assert all(torch.equal(change, one.changes[path]) for path, change in best.changes.items())
    assert best.refining["kept"] == 1 and [each["at"] for each in best.refining["looks"]] == [0, 1, 2, 3]
    assert best.refining["looks"][1]["error"] == pytest.approx(0.7)
    worse = EarlyStopping[Fusion](Scripted([0.5, 0.6]), patience=1)
    kept = rerecord(tiny, members, solved, SMALL, OBJECTIVE, EXACT, passes=4, stopping=worse)
    assert kept.changes is solved.changes and kept.refining["kept"] == 0


def test_creeping_ends_it_too_and_the_lowest_is_kept(tiny: Base) -> None:
    stopping = EarlyStopping[int](Scripted([1.0, 0.9999, 0.9998, 0.1]), patience=2, tolerance=0.01)
    assert [stopping.look(tiny, at, lambda at=at: at) for at in range(3)] == [False, False, True]  # type: ignore[misc]
    assert stopping.best is not None and stopping.best[1] == 2


@pytest.mark.slow
def test_distilling_keeps_its_best_step(tiny: Base, members: list[Member]) -> None:
    start = weight_average(tiny, members)
    plan = dataclasses.replace(PLAN, steps=6, rounds=2, look_every=1)
    stopping = EarlyStopping[dict[str, torch.Tensor]](Scripted([0.9, 0.8, 0.7, 0.8, 0.9, 0.1, 0.1]), patience=2)
    before = state(tiny)
    best = distill(tiny, members, start, plan, stopping=stopping)
    assert all(torch.equal(value, before[key]) for key, value in state(tiny).items())
    assert best.refining["kept"] == 2 and len(best.refining["looks"]) == 5  # in the second round by then

    seen: list[dict[str, torch.Tensor]] = []

    class Watched(Scripted):
        def score(self, fused: Base) -> HeldOutScores:
            seen.append({path: fused.unet.get_submodule(path).weight.detach().clone() for path in paths})  # type: ignore[misc]
            return super().score(fused)

    paths = [path for path in best.changes if path.endswith("attn2.to_k")]
    watched = EarlyStopping[dict[str, torch.Tensor]](Watched([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]))
    whole = distill(tiny, members, start, plan, stopping=watched)
    plain = distill(tiny, members, start, plan)
    with best.in_place(tiny) as fused:
        for path in paths:
            torch.testing.assert_close(fused.unet.get_submodule(path).weight, seen[2][path])
    for path, change in plain.changes.items():
        assert torch.equal(change, whole.changes[path])  # looking changes nothing
    no_better = EarlyStopping[dict[str, torch.Tensor]](Scripted([0.5, 0.6]), patience=1)
    assert distill(tiny, members, start, plan, stopping=no_better).changes is start.changes


def test_validation_prompts_are_for_stopping_alone() -> None:
    others = {*prompts.TEXT, *prompts.PICTURES, *prompts.HELD_OUT, *prompts.ORDINARY, *prompts.HELD_OUT_CAPTIONS}
    assert not others & {*prompts.VALIDATION, *prompts.VALIDATION_CAPTIONS}
    assert not {*prompts.HELD_OUT, *prompts.HELD_OUT_CAPTIONS} & {*prompts.TEXT, *prompts.ORDINARY}


def test_errors_are_those_of_the_validation_prompts(tiny: Base, members: list[Member], solved: Fusion) -> None:
    references = HeldOut(tiny, members, HeldOutPlan(prompts=["a {concept}"], captions=["a boy"], steps=1))
    stopping = EarlyStopping[Fusion](references, patience=1, tolerance=0.0)
    best = rerecord(tiny, members, solved, SMALL, OBJECTIVE, EXACT, passes=2, stopping=stopping)
    with best.in_place(tiny) as fused:
        scores = references.score(fused)
    lowest = min(each["error"] for each in best.refining["looks"])
    assert sum(scores.errors.values()) / 2 == pytest.approx(lowest, rel=1e-4)


@pytest.mark.slow
def test_the_command_rerecords_and_says_how_it_went(
    stage: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["refine.method=rerecord", "refine.passes=2", "solver.name=exact", "format=lora"]
    assert main(["fuse", "fuse.yml", *more]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert report["refining"]["kept"] in (0, 1, 2) and report["seconds"]["re-recording"] > 0
    assert report["held_out"]["errors"].keys() == report["held_out_solved"]["errors"].keys()
    assert main(["fuse", "fuse.yml", "refine.stop=true", "refine.every=1", "refine.validation=['{concept}']"]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert [look["at"] for look in report["refining"]["looks"]] == [0, 1, 2]
    assert main(["fuse", "fuse.yml", "method=ties", "refine.method=rerecord"]) == EXIT_USER_ERROR
    assert "method=ties does not" in capsys.readouterr().err
    assert main(["fuse", "fuse.yml", "refine.patience=0", "refine.validation=[photo]"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert "refine.patience" in said and "refine.validation[0]" in said
    assert not load_fuse_options("fuse.yml").refine.stops
