"""`mixshow fuse` end to end, and what it says about bad input."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from mixshow.cli.main import EXIT_INTERRUPTED, EXIT_USER_ERROR, main
from mixshow.config.fuse import ConceptOptions, FuseOptions, load_fuse_options
from mixshow.config.load import Section
from mixshow.core.files import read_safetensors
from mixshow.edlora.concept import save_concept
from mixshow.formats import write_mix_of_show
from mixshow.fusion.collect import PUBLISHED
from mixshow.fusion.statistics_file import open_statistics
from mixshow.models import Base, load_base, save_base
from mixshow.recipes.fuse_output import output_problems
from mixshow.recipes.statistics import collection_for
from tests.models.checkpoints import published_shape
from tests.tiny import tiny_base, tiny_concept

OPTIONS = Path(__file__).resolve().parents[2] / "options" / "fuse"


@pytest.fixture
def stage(tiny: Base, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base, two concepts (one published) and fast options."""
    monkeypatch.chdir(tmp_path)
    save_concept(tiny_concept(tiny, "duck", seed=0), "duck.safetensors")
    write_mix_of_show(tiny_concept(tiny, "fox", seed=1), "fox.pth", tiny.models)
    Path("fuse.yml").write_text(
        f"base: {tiny_folder}\nconcepts: [{{file: duck.safetensors}}, {{file: fox.pth, weight: 2}}]\noutput: fused\n"
        "statistics: {steps: 1, text_prompts: ['a {concept}'], picture_prompts: ['{concept}']}\n"
        "refine: {steps: 2, prompts: ['{concept}']}\n"
        "anchor: {captions: ['a dog']}\nreport: {steps: 1, prompts: ['a {concept} in the rain'], captions: ['a boy']}\n"
    )
    return tmp_path


def test_fuse_writes_a_model_and_a_report(stage: Path) -> None:
    assert main(["fuse", "fuse.yml"]) == 0
    assert load_base(stage / "fused").vocabulary.tokens == ("<duck1>", "<duck2>", "<fox1>", "<fox2>")
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert set(report["held_out"]["errors"]) == {"<duck1> <duck2>", "<fox1> <fox2>"}
    layer = next(iter(report["layers"].values()))
    assert {"rank", "condition", "status", "residuals"} <= set(layer)
    assert set(layer["residuals"]["<fox1> <fox2>"]) == {"before", "after"}
    assert report["options"]["solver"]["ridge"] == 0.01 and report["seconds"]["distilling"] > 0
    assert report["held_out"]["errors"].keys() == report["held_out_solved"]["errors"].keys()


@pytest.fixture
def single(stage: Path) -> list[str]:
    """Arguments that fuse two concepts on a base in one file to a model in one file."""
    base = published_shape("sd1")
    save_base(base, "base.safetensors")
    for seed, name in enumerate(("duck", "fox")):
        save_concept(tiny_concept(base, name, seed=seed), f"{name}.safetensors")
    concepts = "concepts=[{file: duck.safetensors}, {file: fox.safetensors}]"
    sizes = ["statistics.width=64", "statistics.height=64"]
    return ["fuse", "fuse.yml", "base=base.safetensors", concepts, "output=fused.safetensors", *sizes]


def test_fuse_writes_one_file(single: list[str], stage: Path) -> None:
    quick = ["concepts=[{file: duck.safetensors}]", "refine.method=none", "report.heldout=false", "solver.name=exact"]
    assert main([*single, *quick, "output_dtype=fp16"]) == 0
    fused, base = load_base(stage / "fused.safetensors"), load_base(stage / "base.safetensors")
    assert fused.vocabulary.tokens == ("<duck1>", "<duck2>")
    names = [name for name in base.unet.state_dict() if name.endswith("attn2.to_k.weight")]
    for before, after in ((base.unet.state_dict()[name], fused.unet.state_dict()[name]) for name in names):
        assert torch.equal(after, after.half().float()) and not torch.equal(after, before.half().float())
    report = json.loads((stage / "fused_fusion_report.json").read_text())
    assert report["options"]["output"] == "fused.safetensors"
    assert output_problems(None, load_fuse_options("fuse.yml", single[2:])) == []  # a fused model may be replaced


def test_what_one_file_may_not_replace_or_say_is_said_first(
    single: list[str], stage: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (stage / "duck.safetensors").read_bytes()
    assert main([*single, "output=duck.safetensors"]) == EXIT_USER_ERROR
    assert "other than a fused model, which would be lost; choose another name" in capsys.readouterr().err
    assert (stage / "duck.safetensors").read_bytes() == before
    assert main([*single, f"base={tiny_folder}"]) == EXIT_USER_ERROR
    assert "output: single files hold no tokenizer" in capsys.readouterr().err
    assert main([*single, "output=folder", "output_dtype=bf16"]) == EXIT_USER_ERROR
    assert "output_dtype: bf16 is for single files" in capsys.readouterr().err
    (stage / "d.safetensors").mkdir()
    assert main([*single, "output=d.safetensors"]) == EXIT_USER_ERROR
    assert "output: expected a file" in capsys.readouterr().err


def test_solvers_agree_through_the_command(stage: Path) -> None:
    """With a ridge of the default's size; each is at its place in the report."""
    found = {}
    for name, status in {"exact": "solved", "cg": "converged", "lbfgs": "converged"}.items():
        more = ["statistics.collect=independent"]  # in sequence, rounding of one layer is in the inputs of the next
        more += ["solver.precondition=false"] if name == "lbfgs" else []  # with it, it is nearly the closed form
        assert (
            main(["fuse", "fuse.yml", f"solver.name={name}", "refine.method=none", "report.heldout=false", *more]) == 0
        )
        report = json.loads((stage / "fused" / "fusion_report.json").read_text())
        assert {layer["status"] for layer in report["layers"].values()} == {status}
        found[name] = load_base(stage / "fused").unet.state_dict()
    for name in ("cg", "lbfgs"):
        for key, value in found["exact"].items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-5, atol=1e-6)


def test_a_published_list_stands_in_for_concepts(stage: Path) -> None:
    (stage / "lists").mkdir()
    (stage / "fox.pth").rename(stage / "lists" / "fox.pth")
    entry = {"lora_path": "fox.pth", "unet_alpha": 0.5, "text_encoder_alpha": 0.0, "concept_name": "<fox1> <fox2>"}
    (stage / "lists" / "list.json").write_text(json.dumps([entry]))
    assert main(["fuse", "fuse.yml", "concepts=lists/list.json", "report.heldout=false"]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert (report["concepts"][0]["unet"], report["concepts"][0]["text_encoder"]) == (0.5, 0.0)
    assert report["held_out"] is None


def test_all_problems_are_named_at_once(
    stage: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tiny_base(tmp_path_factory.mktemp("wide"), width=24)
    save_concept(tiny_concept(wide, "cat"), "wide.safetensors")
    Path("cut.safetensors").write_bytes(Path("duck.safetensors").read_bytes()[:500])
    Path("hostile.pth").write_bytes(b"\x80\x02cos\nsystem\nq\x00X\x04\x00\x00\x00echoq\x01\x85q\x02Rq\x03.")
    files = [
        "duck.safetensors",
        "duck.safetensors",
        "nowhere.pth",
        "wide.safetensors",
        "cut.safetensors",
        "hostile.pth",
    ]
    text = Path("fuse.yml").read_text().splitlines()
    text[1] = "concepts: [" + ", ".join(f"{{file: {name}}}" for name in files) + "]"
    Path("bad.yml").write_text("\n".join(text))
    Path("fused").mkdir()
    (stage / "fused" / "precious.txt").write_text("mine")
    assert main(["fuse", "bad.yml"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for expected in (
        "<duck1> is also used by concepts[0]",
        "nowhere.pth",
        "width 24",
        "cut.safetensors",
        "hostile.pth",
        "something other than a fused model",
    ):
        assert expected in said, said
    assert (stage / "fused" / "precious.txt").read_text() == "mine"


def test_a_network_that_changes_nothing_is_said(stage: Path, tiny: Base, caplog: pytest.LogCaptureFixture) -> None:
    save_concept(tiny_concept(tiny, "duck", strength=0.0), "duck.safetensors")
    with caplog.at_level(logging.INFO, "mixshow"):
        assert main(["fuse", "fuse.yml", "refine.method=none"]) == 0
    assert "duck.safetensors: its network changes nothing" in caplog.text and "fox.pth: its" not in caplog.text
    assert all(torch.isfinite(v).all() for v in load_base("fused").unet.state_dict().values())


def test_bad_options_are_named_together(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["fuse", "fuse.yml", "solver.rige=1", "anchor.weight=-1", "statistics.text_prompts=[photo]"])
        == EXIT_USER_ERROR
    )
    said = capsys.readouterr().err
    assert "did you mean 'ridge'" in said and "anchor.weight" in said and "{concept}" in said
    assert main(["fuse", "nowhere.yml"]) == EXIT_USER_ERROR
    assert main(["fuse", "fuse.yml", "base=nowhere"]) == EXIT_USER_ERROR
    assert main(["fuse", "fuse.yml", "device=cuda:99"]) == EXIT_USER_ERROR


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, pytest.param(OSError(28, "No space left on device"), marks=pytest.mark.slow)]
)
def test_stopping_leaves_nothing_half_written(
    stage: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    before = sorted(stage.rglob("*"))
    monkeypatch.setattr("diffusers.UNet2DConditionModel.save_pretrained", stop)
    assert main(["fuse", "fuse.yml", "report.heldout=false"]) == (
        EXIT_INTERRUPTED if error is KeyboardInterrupt else EXIT_USER_ERROR
    )
    work = stage / ".fused.statistics"  # what is in it is whole, and used by the next run
    assert sorted({*stage.rglob("*")} - {work, *work.iterdir()}) == before
    statistics = list(work.glob("*.stats.safetensors"))
    assert len(statistics) == 3 and all(open_statistics(file).check_numbers() is None for file in statistics)
    others = {file.name.partition("-")[0] for file in work.iterdir() if file not in statistics}
    assert others == {"solved"} and all(read_safetensors(file)[0] for file in work.glob("solved-*"))


def test_the_published_preset_gives_defaults_that_keys_override(stage: Path) -> None:
    options = load_fuse_options("fuse.yml", ["preset=published", "solver.ridge=0.5"])
    assert (options.statistics.collect, options.statistics.weights, options.anchor.weight) == (
        "progressive",
        "rows",
        0.0,
    )
    assert (options.solver.ridge, options.solver.spatial_iterations) == (0.5, 50)
    assert options.statistics.text_prompts == ["a {concept}"] and options.statistics.steps == 1
    assert load_fuse_options("fuse.yml").solver.ridge == 0.01


def test_the_published_preset_is_the_published_collection(stage: Path) -> None:
    text = Path("fuse.yml").read_text().splitlines()
    Path("plain.yml").write_text("\n".join(line for line in text if not line.startswith("statistics")))
    assert collection_for(load_fuse_options("plain.yml", ["preset=published"])) == PUBLISHED


@pytest.mark.parametrize("file", sorted(OPTIONS.glob("*.yml")), ids=lambda file: file.stem)
def test_every_options_file_runs(file: Path, stage: Path, tiny_folder: Path) -> None:
    fast = [
        f"base={tiny_folder}", "concepts=[{file: duck.safetensors}, {file: fox.pth}]", "output=fused",
        "statistics.steps=1", "statistics.text_prompts=['a {concept}']", "statistics.picture_prompts=['{concept}']",
        "statistics.width=64", "statistics.height=64", "anchor.captions=['a dog']", "report.heldout=false",
        "refine.steps=3", "refine.rounds=2", "refine.prompts=['a {concept}']",
    ]  # fmt: skip
    assert main(["fuse", str(file), *fast]) == 0
    assert (stage / "fused" / "fusion_report.json").exists()


def option_names(section: type[Section], prefix: str = "") -> list[str]:
    """Every option of a section, `solver.ridge`."""
    hints = get_type_hints(section)
    names = []
    for field in dataclasses.fields(section):
        kind = hints[field.name]
        nested = isinstance(kind, type) and issubclass(kind, Section)
        names += option_names(kind, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return names


def test_every_option_is_documented() -> None:
    text = (OPTIONS.parents[1] / "docs" / "fusion.md").read_text()
    names = [*option_names(FuseOptions), *option_names(ConceptOptions, "concepts[].")]
    assert "solver.ridge" in names and "concepts[].alpha" in names
    assert [name for name in names if f"`{name}`" not in text] == []


def test_there_are_options_files() -> None:
    assert len(list(OPTIONS.glob("*.yml"))) >= 5


@pytest.mark.slow
def test_result_does_not_depend_on_the_run(stage: Path) -> None:
    assert main(["fuse", "fuse.yml", "report.heldout=false"]) == 0
    first = load_base(stage / "fused").unet.state_dict()
    assert main(["fuse", "fuse.yml", "report.heldout=false"]) == 0  # over its own output
    second = load_base(stage / "fused").unet.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
