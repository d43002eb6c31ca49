"""`mixshow fuse --add, --remove, --reweight`: what fusing anew would give, without recording what is there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.edlora.concept import save_concept
from mixshow.models import Base
from mixshow.recipes import fuse_statistics
from tests.fusion.test_statistics_command import FUSE, refuse_to_record, stage, weights
from tests.tiny import tiny_concept

__all__ = ["stage"]  # the fixture
PAIR = "concepts=[{file: duck.safetensors}, {file: fox.safetensors, weight: 2}]"


@pytest.fixture
def fused(stage: Path) -> Path:
    """A fused model that kept its statistics."""
    assert main([*FUSE, PAIR, "statistics.keep=true"]) == 0
    return stage


def same(folder: str, *fresh: str) -> None:
    """Whether a model is the one that fusing anew gives."""
    assert main([*FUSE, "output=fresh", *fresh]) == 0
    expected, found = weights("fresh"), weights(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_fused_model_keeps_its_statistics(fused: Path) -> None:
    names = [f"{name}.stats.safetensors" for name in ("captions", "duck", "fox")]
    assert sorted(path.name for path in (fused / "fused" / "statistics").iterdir()) == names
    options = json.loads((fused / "fused" / "fusion_report.json").read_text())["options"]
    assert [Path(entry["statistics"]) for entry in (*options["concepts"], options["anchor"])] == [
        Path("fused/statistics") / name for name in (names[1], names[2], names[0])
    ]
    assert not (fused / ".fused.statistics").exists()


def test_reweighting(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        refuse_to_record(patch)
        assert main(["fuse", "fused", "--reweight", "duck=5"]) == 0
    same("fused", "concepts=[{file: duck.safetensors, weight: 5}, {file: fox.safetensors, weight: 2}]")
    with monkeypatch.context() as patch:  # and back: the statistics are still there
        refuse_to_record(patch)
        assert main(["fuse", "fused", "--reweight", "<duck1> <duck2>=1"]) == 0
    same("fused", PAIR)


def test_adding_and_removing(fused: Path, tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics beside the concept's file are used; those of a concept without are recorded, its alone."""
    for seed, name in ((7, "cat"), (8, "owl")):
        save_concept(tiny_concept(tiny, name, seed=seed), f"{name}.safetensors")
    assert main(["statistics", "cat.safetensors", "--options", "statistics.yml"]) == 0
    with monkeypatch.context() as patch:
        refuse_to_record(patch)
        assert main(["fuse", "fused", "--add", "cat.safetensors", "--remove", "fox", "output=other"]) == 0
    same("other", "concepts=[{file: duck.safetensors}, {file: cat.safetensors}]")
    assert sorted(path.name for path in (fused / "other" / "statistics").iterdir())[0] == "captions.stats.safetensors"
    Path("owl.yml").write_text("{file: owl.safetensors, weight: 3}")
    record_all, recorded = fuse_statistics.record_all, []

    def count(base: Base, member: Any, *rest: Any) -> Any:
        recorded.append(member.concept.text)
        return record_all(base, member, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(fuse_statistics, "record_all", count)
        assert main(["fuse", "other", "--add", "owl.yml"]) == 0
    assert recorded == ["<owl1> <owl2>"]
    same(
        "other",
        "concepts=[{file: duck.safetensors}, {file: cat.safetensors}, {file: owl.safetensors, weight: 3}]",
    )


def test_a_moved_model_and_a_lora_folder(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fused / "fused").rename(fused / "moved")
    assert main([*FUSE, PAIR, "output=network", "format=lora", "statistics.keep=true"]) == 0
    refuse_to_record(monkeypatch)
    assert main(["fuse", "moved", "--remove", "duck"]) == 0
    assert main(["fuse", "network", "--remove", "duck"]) == 0
    assert {path.name for path in (fused / "network" / "statistics").iterdir()} == {
        "captions.stats.safetensors", "fox.stats.safetensors",
    }  # fmt: skip
    report = json.loads((fused / "network" / "fusion_report.json").read_text())
    assert [concept["tokens"] for concept in report["concepts"]] == [["<fox1>", "<fox2>"]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--remove", "ducks"], "has no concept 'ducks'; did you mean 'duck'?"),
        (["--reweight", "duck"], "--reweight: expected NAME=WEIGHT such as pip=2, found 'duck'"),
        (["--reweight", "duck=much"], "--reweight: expected NAME=WEIGHT"),
        (["--reweight", "duck=-1"], "weight: expected more than 0"),
        (["--remove", "duck", "--remove", "fox"], "concepts: expected at least one"),
        (["--add", "duck.safetensors"], "<duck1> is also used by concepts[0]"),
        (["--add", "nowhere.safetensors"], "no such concept or network file"),
        (["--remove", "fox", "statistics.steps=2"], "recorded with steps 1, not 2"),
    ],
)
def test_mistakes_leave_the_model_as_it_was(
    arguments: list[str], words: str, fused: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (fused / "fused").rglob("*")}
    assert main(["fuse", "fused", *arguments]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in (fused / "fused").rglob("*")} == before


def test_without_kept_statistics_it_is_said(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FUSE, PAIR]) == 0
    assert main(["fuse", "fused", "--remove", "fox"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert "concept duck.safetensors: its statistics were not kept" in said and "anchor: its" in said
    assert "statistics.keep=true" in said
    assert main(["fuse", "nowhere", "--remove", "fox"]) == EXIT_USER_ERROR
    assert "expected a fused model with its fusion_report.json" in capsys.readouterr().err


@pytest.mark.slow
def test_one_file_keeps_its_statistics_beside_it(fused: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mixshow.models.base import save_base
    from tests.models.checkpoints import published_shape

    base = published_shape("sd1")
    save_base(base, "base.safetensors")
    for seed, name in enumerate(("duck", "fox")):
        save_concept(tiny_concept(base, name, seed=seed), f"{name}.safetensors")
    sizes = ["statistics.width=64", "statistics.height=64", "solver.name=exact", "statistics.keep=true"]
    arguments = [*FUSE, PAIR, "base=base.safetensors", "output=one.safetensors", *sizes]
    assert main(arguments) == 0
    assert {path.name for path in (fused / "one_statistics").iterdir()} == {
        f"{name}.stats.safetensors" for name in ("captions", "duck", "fox")
    }
    refuse_to_record(monkeypatch)
    before = {path: path.read_bytes() for path in fused.glob("one*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("mixshow.models.checkpoint_write.write_safetensors", full_disk)
        for changed in ([], ["output=two.safetensors"]):
            assert main(["fuse", "one.safetensors", "--remove", "duck", *changed]) == EXIT_USER_ERROR
    assert before == {path: path.read_bytes() for path in before} and not list(fused.glob("two*"))
    assert not list(fused.glob("*.partial"))
    assert main(["fuse", "one.safetensors", "--remove", "duck"]) == 0
    names = [concept["tokens"] for concept in json.loads(Path("one_fusion_report.json").read_text())["concepts"]]
    assert names == [["<fox1>", "<fox2>"]]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")
