"""Inputs that cannot be fused, and places that must not be written: one line, and what is there stays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.edlora.concept import save_concept
from mixshow.fusion.heldout import HeldOut, HeldOutPlan
from mixshow.fusion.members import Member
from mixshow.models import Base, load_base
from mixshow.sampling.precision import Precision
from tests.fusion.test_recipe import stage  # noqa: F401
from tests.tiny import tiny_concept

QUICK = ["refine.method=none", "report.heldout=false", "statistics.collect=independent"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said when a fusion is refused: one line for each problem."""
    capsys.readouterr()
    assert main(["fuse", *arguments]) == EXIT_USER_ERROR
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    return said.splitlines()[-1]


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_a_network_of_zeros_leaves_the_base_as_it_is(
    stage: Path,  # noqa: F811
    tiny: Base,
    precision: Precision,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In whichever precision: single passes and batches differ by rounding, which is nothing to learn."""
    monkeypatch.setattr(
        "mixshow.sampling.precision.resolve", lambda given, _: precision if given is Precision.AUTO else given
    )
    save_concept(tiny_concept(tiny, "cat", strength=0.0), "zero.safetensors")
    assert main(["fuse", "fuse.yml", "concepts=[{file: zero.safetensors}]"]) == 0
    fused = load_base(stage / "fused").unet.state_dict()
    for name, value in tiny.unet.state_dict().items():
        torch.testing.assert_close(fused[name], value, rtol=0, atol=1e-5)  # rounding of its passes
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert report["held_out"]["drift"] < 1e-4 and report["held_out"]["errors"]["<cat1> <cat2>"] < 1e-4
    assert report["advice"] == []


def test_what_is_no_number_replaces_no_model(
    stage: Path,  # noqa: F811
    tiny: Base,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fuse", "fuse.yml", *QUICK]) == 0
    before = (stage / "fused" / "fusion_report.json").read_bytes()
    for more in ([], ["format=lora", "refine.low_rank=false", "lora.rank=2"]):
        said = refused(capsys, "fuse.yml", "refine.rate=1e30", *more)
        assert "its fused change holds values that are no numbers; " in said
    strong = "concepts=[{file: duck.safetensors, alpha: 1e39}]"
    assert "method: svd cannot factorise" in refused(capsys, "fuse.yml", "method=svd", strong)
    concept = tiny_concept(tiny, "cat")
    embeddings = {token: vectors / 0 for token, vectors in concept.embeddings.items()}
    save_concept(dataclasses.replace(concept, embeddings=embeddings), "broken.safetensors")
    said = refused(capsys, "fuse.yml", "concepts=[{file: broken.safetensors}]")
    assert "broken.safetensors: the embeddings of <cat1>, <cat2> hold values that are no numbers" in said
    assert (stage / "fused" / "fusion_report.json").read_bytes() == before


def test_errors_from_a_model_that_overflows_are_no_numbers(tiny: Base) -> None:
    member = Member(tiny_concept(tiny, "cat"), alpha=1e30)
    held_out = HeldOut(tiny, [member], HeldOutPlan(["{concept}"], ["a dog"], steps=1))
    assert torch.tensor(held_out.score(tiny).errors[member.concept.text]).isnan()


@pytest.mark.parametrize("name", ["solver.ridge", "anchor.weight", "refine.rate", "solver.huber_delta"])
@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_options_are_finite(
    stage: Path,  # noqa: F811
    name: str,
    value: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert f"{name}: expected a number" in refused(capsys, "fuse.yml", f"{name}={value}")


@pytest.mark.parametrize("tokens", ["a1 a2", "<a1> <a2> more"])
def test_tokens_that_are_none_are_told(stage: Path, tokens: str, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    said = refused(capsys, "fuse.yml", f"concepts=[{{file: duck.safetensors, tokens: '{tokens}'}}]")
    assert f"concepts[0].tokens: expected names such as '<a1> <a2>', found '{tokens}'" in said


@pytest.mark.parametrize("name", ["fused.ckpt", "fused.SAFETENSORS"])
def test_a_file_of_another_kind_is_no_folder(stage: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert f"output: expected a folder, or a file whose name ends in .safetensors, found {name}" in refused(
        capsys, "fuse.yml", f"output={name}"
    )


def test_an_empty_list_of_concepts_is_told(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    (stage / "list.json").write_text("[]")
    assert "list.json: expected a list of concepts, found an empty one" in refused(
        capsys, "fuse.yml", "concepts=list.json"
    )


@pytest.mark.parametrize("name", ["statistics.steps", "report.steps"])
def test_no_more_steps_than_the_base_knows(
    stage: Path,  # noqa: F811
    name: str,
    tiny: Base,
    capsys: pytest.CaptureFixture[str],
) -> None:
    most = tiny.num_train_timesteps
    assert f"{name}: expected at most {most}" in refused(capsys, "fuse.yml", f"{name}={most + 1}")


def test_what_lies_in_the_output_is_not_lost(
    stage: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fuse", "fuse.yml", *QUICK]) == 0
    assert main(["fuse", "fuse.yml", *QUICK, "statistics.keep=true"]) == 0  # a fused model itself may be replaced
    (stage / "fused" / "notes.txt").write_text("mine")
    (stage / "fused" / ".hidden").write_text("of a file manager")
    said = refused(capsys, "fuse.yml")
    assert "beside a fused model fused holds notes.txt, which would be lost; move them" in said
    (stage / "fused" / "notes.txt").rename(stage / "notes.txt")
    (stage / "duck.safetensors").rename(stage / "fused" / "concept.safetensors")
    said = refused(capsys, "fuse.yml", "concepts=[{file: fused/concept.safetensors}]")
    assert "concepts[0].file: fused/concept.safetensors is in the output fused" in said
    assert (stage / "fused" / "concept.safetensors").is_file()
    monkeypatch.setenv("HOME", str(stage))
    given = ["fuse.yml", "base=~/fused", "concepts=[{file: fox.pth}]"]
    assert "output: fused is the base itself" in refused(capsys, *given)


@pytest.mark.parametrize(
    "report", ['{"options": 3, "concepts": []}', '{"options": {}, "concepts": []}', '{"options": {"concepts": [{}]}}']
)
def test_a_damaged_report_is_told(
    stage: Path,  # noqa: F811
    report: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (stage / "fused").mkdir()
    (stage / "fused" / "fusion_report.json").write_text(report)
    assert "expected the report of a fusion" in refused(capsys, "fused", "--remove", "duck")
