"""Several processes fuse what one fuses, and a plan says beforehand what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from mixshow.cli.main import EXIT_INTERRUPTED, EXIT_USER_ERROR, main
from mixshow.core.processes import Processes
from mixshow.core.stored_tensor import stored_tensors
from mixshow.edlora.concept import save_concept
from mixshow.fusion import cost, lessons
from mixshow.fusion.collect import Collection
from mixshow.fusion.distinct_inputs import distinct_inputs
from mixshow.fusion.fuse import fuse
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.heldout import HeldOut, HeldOutPlan
from mixshow.fusion.layers import Stage
from mixshow.fusion.lessons import DistillPlan, write_curriculum
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.objective import Objective
from mixshow.fusion.origin import Origin
from mixshow.fusion.solvers import Exact
from mixshow.fusion.statistics_file import open_statistics, write_statistics
from mixshow.models import Base, load_base
from mixshow.recipes import fuse_plan
from tests.tiny import tiny_concept

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def options(tiny: Base, tiny_folder: Path, tmp_path: Path) -> Path:
    """Two concepts with three prompts each, so that two processes have unequal parts."""
    for number, name in enumerate(("duck", "fox")):
        save_concept(tiny_concept(tiny, name, seed=number), tmp_path / f"{name}.safetensors")
    path = tmp_path / "fuse.yml"
    path.write_text(
        f"base: {tiny_folder}\noutput: {tmp_path / 'fused'}\n"
        f"concepts: [{{file: {tmp_path}/duck.safetensors}}, {{file: {tmp_path}/fox.safetensors, weight: 2}}]\n"
        "statistics: {collect: independent, steps: 2, "
        "text_prompts: ['a {concept}', '{concept}', '{concept} in the rain'], "
        "picture_prompts: ['{concept}', 'a {concept}', '{concept} on the beach']}\n"
        "anchor: {captions: ['a dog']}\nrefine: {method: none}\nreport: {heldout: false}\n"
    )
    return path


def test_parts_of_all_processes_are_the_whole() -> None:
    for offset in range(4):
        parts = [list(range(7))[Processes(index, 3).part(offset)] for index in range(3)]
        assert sorted(number for part in parts for number in part) == list(range(7))
    # The next concept's longest part is another process's.
    assert 0 in list(range(7))[Processes(1, 3).part(1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("collect", "launcher"),
    [
        ("independent", ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]),
        ("sequential", ["torch.distributed.run", "--nproc_per_node", "2"]),
        ("progressive", ["torch.distributed.run", "--nproc_per_node", "2"]),
    ],
)
def test_two_processes_fuse_what_one_fuses(options: Path, tmp_path: Path, collect: str, launcher: list[str]) -> None:
    launch = [sys.executable, "-m", *launcher, "-m", "mixshow"]
    common = [str(options), f"statistics.collect={collect}"]
    subprocess.run([*launch, "fuse", *common, f"output={tmp_path / 'two'}"], cwd=ROOT, check=True)
    assert main(["fuse", *common, f"output={tmp_path / 'one'}"]) == 0
    one, two = load_base(tmp_path / "one"), load_base(tmp_path / "two")
    for name, model in one.models.items():
        for key, weight in model.state_dict().items():
            torch.testing.assert_close(two.models[name].state_dict()[key], weight, rtol=1e-4, atol=1e-5)
    reports = [json.loads((tmp_path / name / "fusion_report.json").read_text()) for name in ("one", "two")]
    assert reports[0]["layers"].keys() == reports[1]["layers"].keys()


@pytest.mark.slow
def test_two_processes_record_what_one_records(options: Path, tiny_folder: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "mixshow"]
    prompts = ["statistics.text_prompts=['a {concept}', '{concept}', 'red {concept}']", "statistics.steps=2"]
    given = ["statistics", str(tmp_path / "duck.safetensors"), "--base", str(tiny_folder), *prompts]
    given += ["statistics.picture_prompts=['a {concept}', '{concept}', 'red {concept}']"]
    subprocess.run([*launch, *given, "--out", str(tmp_path / "two.safetensors")], cwd=ROOT, check=True)
    assert main([*given, "--out", str(tmp_path / "one.safetensors")]) == 0
    one, two = (open_statistics(tmp_path / f"{name}.safetensors").layers for name in ("one", "two"))
    for path, inputs in one.items():
        assert two[path].rows == inputs.rows
        assert (two[path].moment - inputs.moment).norm() <= 1e-5 * inputs.moment.norm()  # batches are other ones


def test_a_dry_run_prints_the_plan_and_writes_nothing(options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(options.parent.rglob("*"))
    assert main(["fuse", str(options), "--dry-run", "refine.method=distill", "report.heldout=true"]) == 0
    text = capsys.readouterr().out
    for expected in ("<duck1> <duck2>", "recording spatial layers", "solving text encoder", "distilling", "held-out"):
        assert expected in text
    assert "memory beside the model" in text and "time to expect" in text
    assert set(options.parent.rglob("*")) == before


def test_a_dry_run_leaves_out_recording_that_files_save(
    options: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Left by an interrupted run, as files of `mixshow statistics` would be."""

    def planned(*arguments: str) -> dict[str, str]:
        capsys.readouterr()
        assert main(["fuse", str(options), "--dry-run", *arguments]) == 0
        lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        return {line[1].strip(): line[4].strip() for line in lines if len(line) == 7}

    with monkeypatch.context() as patch:
        patch.setattr("mixshow.recipes.fuse.fuse_members", interrupted)
        assert main(["fuse", str(options)]) == EXIT_INTERRUPTED
    assert not any(name.startswith("recording") for name in planned())
    assert planned("anchor.captions=[a boy]")["recording spatial layers"] == "2"  # a caption of two steps
    assert planned("statistics.seed=1")["recording spatial layers"] == "14"
    rows = planned("solver.objective=huber")
    assert rows["keeping rows of spatial layers"] == "12" and "recording spatial layers" not in rows
    assert int(planned("refine.method=rerecord", "refine.passes=3")["recording and solving again"]) > 3 * 14


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_dry_run_counts_every_pass_of_recording_again(options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", str(options), "--dry-run", "refine.method=rerecord", "refine.passes=3"]) == 0
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    passes = {line[1].strip(): line[4].strip() for line in lines if len(line) == 7}
    # Two concepts of three pictures, a caption, two steps each; three times that, and looks at validation prompts.
    assert passes["recording spatial layers"] == "14" and int(passes["recording and solving again"]) > 3 * 14


def test_a_dry_run_names_what_is_wrong(options: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", str(options), "--dry-run", "concepts=[{file: none.safetensors}]"]) == EXIT_USER_ERROR
    assert "none.safetensors" in capsys.readouterr().err


class Counter:
    """Texts and pictures that go through a base's models within the block."""

    def __init__(self, base: Base) -> None:
        self.passes, self._handles = cost.Passes(), []
        self._handles.append(base.unet.register_forward_pre_hook(self._picture))
        self._handles.append(base.text_encoder.register_forward_pre_hook(self._text, with_kwargs=True))

    def _picture(self, _: object, arguments: tuple[torch.Tensor, ...]) -> None:
        self.passes += cost.Passes(unet=len(arguments[0]))

    def _text(self, _: object, arguments: tuple[torch.Tensor, ...], __: object) -> None:
        self.passes += cost.Passes(text=len(arguments[0]))

    def taken(self) -> cost.Passes:
        for handle in self._handles:
            handle.remove()
        return self.passes


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=number)) for number, name in enumerate(("duck", "fox"))]


def test_the_plan_counts_the_passes_that_recording_takes(tiny: Base, members: list[Member]) -> None:
    collection = Collection(text_prompts=["{concept}", "a {concept}"], picture_prompts=["{concept}"], steps=2)
    captions = ["a dog", "a boy", "rain"]
    counter = Counter(tiny)
    fuse(tiny, members, collection, Objective(1e-2, 0.3, captions), dict.fromkeys(Stage, Exact()))
    expected = cost.recording_passes(collection, tuple(Stage), len(members), len(captions), tiny.topology.layers)
    assert counter.taken() == sum(expected.values(), cost.Passes())


def test_the_plan_counts_the_passes_of_lessons_and_reports(tiny: Base, members: list[Member]) -> None:
    plan = DistillPlan(steps=0, rounds=2, prompts=["{concept}", "a {concept}", "red {concept}"], walk_steps=3)
    counter = Counter(tiny)
    nothing = Fusion({}, {token: v for member in members for token, v in member.concept.embeddings.items()})
    for number in range(plan.rounds):
        write_curriculum(tiny, members, plan, number, walker=partial(nothing.in_place, tiny) if number else None)
    assert counter.taken().unet == cost.distilling_passes(plan, len(members)).unet
    held_out, counter = HeldOutPlan(["{concept}"], ["a dog", "a boy"], steps=2), Counter(tiny)
    references = HeldOut(tiny, members, held_out)
    fused, attachment = nothing.attach(tiny)
    with attachment:
        references.score(fused)
    assert counter.taken().unet == cost.heldout_passes(held_out, len(members), 1).unet
    assert lessons.lesson_prompts(plan, 0) == ["{concept}", "red {concept}"]


def test_the_plan_knows_that_wide_layers_are_solved_in_the_span_of_their_rows(
    tiny: Base, members: list[Member]
) -> None:
    inputs = distinct_inputs(changed_layers(tiny, members, Stage.SPATIAL), Collection())
    moments, rows = Collection(), Collection(moment_width=1, kept_rows=2)
    assert cost.stored_bytes(inputs, moments, 3) == 3 * sum(2 * each.elements for each in inputs)
    assert cost.stored_bytes(inputs, rows, 3) == 3 * sum(8 * each.width * len(each.outputs) for each in inputs)
    assert cost.solving_operations(inputs, rows, 8, 3) < cost.solving_operations(inputs, moments, 8, 3)


def test_the_plan_knows_how_large_files_of_statistics_are(tiny: Base, members: list[Member], tmp_path: Path) -> None:
    """Text features are in double precision there."""
    layers = [layer for stage in Stage for layer in changed_layers(tiny, members, stage)]
    path = tmp_path / "duck.stats.safetensors"
    write_statistics(path, fuse_recorded(tiny, members), Origin("", "", None, (), 1.0, 1.0, (), (), True, 1, 8, 8, 0))
    written = sum(each.shape.numel() * each.dtype.itemsize for each in stored_tensors(path).values())
    # A half has a row more than half of a matrix.
    assert 1 < written / cost.stored_bytes(distinct_inputs(layers, Collection()), Collection(), 1) < 1.1


def test_the_plan_knows_the_distinct_inputs(tiny: Base, members: list[Member]) -> None:
    layers = [layer for stage in Stage for layer in changed_layers(tiny, members, stage)]
    recorded = fuse_recorded(tiny, members)
    distinct = {id(each): each for each in recorded.values()}.values()
    inputs = distinct_inputs(layers, Collection())
    assert sorted(each.width for each in inputs) == sorted(each.shape[-1] for each in distinct)
    assert sum(each.elements for each in inputs) == sum(each.moment.numel() for each in distinct)
    assert sum(len(each.outputs) for each in inputs) == len(layers)


def fuse_recorded(base: Base, members: list[Member]) -> dict[str, object]:
    """Statistics of one concept in all stages."""
    from mixshow.fusion.fuse import record_stage

    collection = Collection(text_prompts=["{concept}"], picture_prompts=["{concept}"], steps=1)
    found: dict[str, object] = {}
    for stage in Stage:
        found |= record_stage(base, members[:1], stage, collection, Objective()).concepts[0]
    return found


def test_durations_are_written_for_people() -> None:
    written = [fuse_plan._duration(seconds) for seconds in (0.25, 42, 600, 7200)]
    assert written == ["0.2 s", "42 s", "10 min", "2.0 h"]
