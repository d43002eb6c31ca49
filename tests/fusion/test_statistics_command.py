"""`mixshow statistics`, and fusions from its files: the same model, refused where they do not belong together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.config.load import load
from mixshow.config.recording import StatisticsOptions
from mixshow.config.statistics import StatisticsFileOptions
from mixshow.core.files import read_safetensors, write_safetensors
from mixshow.edlora.concept import save_concept
from mixshow.fusion.statistics_file import open_statistics
from mixshow.models import Base, load_base
from mixshow.recipes import fuse_statistics, memory
from tests.fusion.test_recipe import option_names
from tests.tiny import tiny_concept

ROOT = Path(__file__).resolve().parents[2]
RECORDING = "{steps: 1, text_prompts: ['a {concept}'], picture_prompts: ['{concept}']}"
FUSE = ["fuse", "fuse.yml", "statistics.collect=independent"]  # as files of statistics are


@pytest.fixture
def stage(tiny: Base, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base, two concepts and fast options for both commands."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("duck", "fox")):
        save_concept(tiny_concept(tiny, name, seed=seed), f"{name}.safetensors")
    Path("fuse.yml").write_text(
        f"base: {tiny_folder}\nconcepts: [{{file: duck.safetensors}}, {{file: fox.safetensors, weight: 2}}]\n"
        f"output: fused\nstatistics: {RECORDING}\nrefine: {{method: none}}\nanchor: {{captions: ['a dog']}}\n"
        "report: {heldout: false}\n"
    )
    Path("statistics.yml").write_text(f"base: {tiny_folder}\nstatistics: {RECORDING}\n")
    return tmp_path


def record(*arguments: str) -> int:
    return main(["statistics", *arguments, "--options", "statistics.yml"])


def with_files(**changed: str) -> list[str]:
    """Arguments that fuse from the files."""
    files = {"duck": "duck.stats.safetensors", "fox": "fox.stats.safetensors", **changed}
    concepts = ", ".join(f"{{file: {name}.safetensors, statistics: {file}}}" for name, file in files.items())
    return [*FUSE, f"concepts=[{concepts}]", "anchor.statistics=captions.stats.safetensors"]


def weights(folder: str) -> dict[str, torch.Tensor]:
    base = load_base(folder)
    return {f"{name}.{k}": v for name, model in base.models.items() for k, v in model.state_dict().items()}


def refuse_to_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def record_all(*_: Any) -> None:
        raise AssertionError("recorded what was there")

    monkeypatch.setattr(fuse_statistics, "record_all", record_all)


def test_fusing_from_files_is_fusing_that_records(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, also where one file covers more layers and constant inputs than are wanted."""
    assert record("duck.safetensors", "biases=true") == 0
    assert record("fox.safetensors", "layers=[own,text_attention,text_feed_forward,keys_values,attention]") == 0
    assert record("--captions", "captions=['a dog']") == 0
    file = open_statistics("duck.stats.safetensors")
    assert file.origin.tokens == ("<duck1>", "<duck2>") and file.extended
    assert main([*FUSE, "concepts=[{file: duck.safetensors}, {file: fox.safetensors}]"]) == 0
    expected = weights("fused")
    refuse_to_record(monkeypatch)
    assert main([*with_files(), "output=again"]) == 0
    found = weights("again")
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-7, msg=key)
    assert not list(stage.glob(".*"))


def test_a_network_by_its_trigger(stage: Path, tiny: Base, capsys: pytest.CaptureFixture[str]) -> None:
    write_safetensors("plain.safetensors", tiny_concept(tiny, "cat").network)
    assert record("plain.safetensors", "trigger=red hat") == 0
    concept = "file: plain.safetensors, statistics: plain.stats.safetensors"
    assert main([*FUSE, f"concepts=[{{{concept}, trigger: red hat}}]", "anchor.weight=0"]) == 0
    assert main([*FUSE, f"concepts=[{{{concept}, trigger: blue hat}}]", "anchor.weight=0"]) == EXIT_USER_ERROR
    assert "of the concept red hat, not of blue hat" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["statistics.steps=2"], "recorded with steps 1, not 2"),
        (["statistics.text_prompts=['{concept}, smiling']"], "recorded with text_prompts ['a {concept}'], not"),
        (["statistics.width=128"], "recorded with width 64, not 128"),
        (["statistics.seed=5"], "seed 0, not 5"),
        (["concepts=[{file: fox.safetensors, statistics: duck.stats.safetensors}]"], "of the concept <duck1> <duck2>"),
        (["concepts=[{file: duck.safetensors, alpha: 0.5, statistics: duck.stats.safetensors}]"], "strength on the"),
        (["anchor.captions=['a boy']"], "anchor.statistics: captions.stats.safetensors: recorded with text_prompts"),
        (["anchor.statistics=duck.stats.safetensors"], "anchor.statistics: duck.stats.safetensors: of the concept"),
        (["anchor.statistics=nowhere"], "no such file"),
        (["statistics.collect=progressive"], "concepts[0].statistics: is for collect=independent"),
    ],
)  # fmt: skip
def test_files_of_something_else_are_refused(
    arguments: list[str], words: str, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    concepts = "concepts=[{file: duck.safetensors, statistics: duck.stats.safetensors}]"
    fuse = [*FUSE, concepts, "anchor.statistics=captions.stats.safetensors"]
    assert main([*fuse, *arguments]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said and not (recorded / "fused").exists()


@pytest.fixture
def recorded(stage: Path) -> Path:
    """With statistics of one concept and of the captions."""
    assert record("duck.safetensors") == record("--captions", "captions=['a dog']") == 0
    return stage


def test_another_base_missing_layers_and_damage_are_refused(
    recorded: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, metadata = read_safetensors("duck.stats.safetensors")
    about = json.loads(metadata["mixshow"])
    write_safetensors("other.safetensors", tensors, {"mixshow": json.dumps({**about, "base": "0123"})})
    tensors[min(tensors)][0] = torch.nan
    write_safetensors("damaged.safetensors", tensors, metadata)
    assert record("duck.safetensors", "layers=[keys_values]", "--out", "few.safetensors") == 0
    for name, words in {
        "other": "recorded on another base",
        "damaged": "values that are no numbers",
        "few": "layers=[own,text_attention,attention]",
    }.items():
        concepts = f"concepts=[{{file: duck.safetensors, statistics: {name}.safetensors}}]"
        assert main([*FUSE, concepts]) == EXIT_USER_ERROR
        assert words in capsys.readouterr().err


def test_an_interrupted_fusion_does_not_record_again(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(FUSE) == 0
    expected, record_all, done = weights("fused"), fuse_statistics.record_all, []

    def stop_at_the_second(base: Base, member: Any, *rest: Any) -> Any:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(member)
        return record_all(base, member, *rest)

    monkeypatch.setattr(fuse_statistics, "record_all", stop_at_the_second)
    assert main([*FUSE, "output=late"]) == 130
    [left] = (stage / ".late.statistics").iterdir()
    assert left.name.startswith("duck-")

    def only_others(base: Base, member: Any, *rest: Any) -> Any:
        assert member is None or member.concept.text != "<duck1> <duck2>"
        return record_all(base, member, *rest)

    monkeypatch.setattr(fuse_statistics, "record_all", only_others)
    assert main([*FUSE, "output=late"]) == 0
    found = weights("late")
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert not (stage / ".late.statistics").exists()
    assert main([*FUSE, "output=late", "concepts=[{file: fox.safetensors, alpha: 0.5}]"]) == 0


def test_too_little_memory_is_said_before_the_start(
    recorded: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda _: (1000, 10**12))
    assert record("duck.safetensors", "layers=[keys_values]") == 0
    said = capsys.readouterr().err
    assert "recording: needs about 0.0 GB" in said and "statistics.moment_width" in said
    monkeypatch.setattr(memory, "free_memory", lambda _: (1000, 2000))
    assert main(FUSE) == EXIT_USER_ERROR
    assert "recording a concept: needs about" in capsys.readouterr().err and not list(recorded.glob("*fused*"))
    assert record("duck.safetensors") == EXIT_USER_ERROR


def test_options_are_checked(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([], "expected a concept or --captions"),
        (["duck.safetensors", "--captions"], "--captions: is for the base alone"),
        (["duck.safetensors", "statistics.collect=progressive"], "statistics.collect: is an option of mixshow fuse"),
        (["duck.safetensors", "layers=[everything]"], "layers[0]: expected one of own, all"),
        (["duck.safetensors", "--out", "x.bin"], "expected a name that ends in .safetensors"),
        (["duck.safetensors", "captions=['a']"], "captions: are for the base's own"),
        (["nowhere.safetensors"], "no such concept or network file"),
        (["--captions", "layers=[own]"], "layers: own are none of this base"),
    ):
        assert record(*arguments) == EXIT_USER_ERROR, arguments
        assert words in capsys.readouterr().err
    assert not list(stage.glob("*.stats.*"))


@pytest.mark.parametrize("file", sorted((ROOT / "options" / "statistics").glob("*.yml")), ids=lambda file: file.stem)
def test_every_options_file_runs(file: Path, stage: Path, tiny_folder: Path) -> None:
    fast = [f"base={tiny_folder}", "concept=duck.safetensors", "output=out.stats.safetensors", "statistics.steps=1"]
    fast += ["statistics.width=64", "statistics.height=64", "statistics.text_prompts=['a {concept}']"]
    assert main(["statistics", "--options", str(file), *fast, "statistics.picture_prompts=['{concept}']"]) == 0
    assert open_statistics("out.stats.safetensors").layers


def test_every_option_is_documented() -> None:
    text = (ROOT / "docs" / "fusion.md").read_text()
    own = [name for name in option_names(StatisticsFileOptions) if not name.startswith("statistics.")]
    assert [name for name in own if f"`{name}`" not in text] == []
    assert load(StatisticsFileOptions, "defaults", values={}).statistics == StatisticsOptions()


def test_statistics_never_replace_anything_else(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("duck.safetensors").read_bytes()
    assert record("duck.safetensors", "--out", "duck.safetensors") == EXIT_USER_ERROR
    assert Path("duck.safetensors").read_bytes() == before
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_statistics_inside_the_output_are_not_lost(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record("duck.safetensors") == 0
    Path("fused").mkdir()
    Path("duck.stats.safetensors").rename("fused/duck.stats.safetensors")
    concepts = "concepts=[{file: duck.safetensors, statistics: fused/duck.stats.safetensors}]"
    assert main([*FUSE, concepts]) == EXIT_USER_ERROR
    assert "outside of the output" in capsys.readouterr().err
    assert Path("fused/duck.stats.safetensors").is_file()


def test_a_dry_run_checks_files_of_statistics(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FUSE, "concepts=[{file: duck.safetensors, statistics: none.safetensors}]", "--dry-run"]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    assert main([*FUSE, "--dry-run", "--remove", "duck"]) == EXIT_USER_ERROR
