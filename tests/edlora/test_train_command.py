"""`mixshow train` from options file to concept file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from mixshow.cli.main import main
from mixshow.formats import read_concept
from mixshow.lycoris.registry import ALGORITHMS
from tests.edlora.conftest import write_pictures

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = sorted((ROOT / "options" / "train").glob("*/*.yml"))


@pytest.fixture
def options_file(tmp_path, pictures, tiny_folder):
    """A small options file for the tiny base."""
    path = tmp_path / "options.yml"
    path.write_text(
        f"""
base: {tiny_folder}
output: {tmp_path / "out"}
concept: {{tokens: "<pip1>+<pip2>", initialiser: "<rand-0.1>+boy"}}
data: {{images: {pictures}/image, masks: {pictures}/mask, captions: {pictures}/caption, size: 64}}
train: {{steps: 2, batch_size: 2, lr: {{embedding: 1e-2, text_encoder: 1e-3, unet: 1e-3}}}}
loss: {{mask: true, attention_weight: 0.01}}
sample: {{prompts: ["a photo of <TOK>"], seeds: [0, 1], steps: 2, strengths: [0, 1]}}
"""
    )
    return path


def test_writes_concept_options_and_grid(options_file, tmp_path, tiny):
    assert main(["train", str(options_file)]) == 0
    out = tmp_path / "out"
    concept = read_concept(out / "concept.safetensors")
    assert concept.text == "<pip1> <pip2>"
    assert concept.metadata["topology"] == tiny.topology.fingerprint()
    assert concept.metadata["class_word"] == "boy"
    width, height = Image.open(out / "grids" / "step_00002.png").size
    assert width == 2 * 64 + 3 * 4 and height > 2 * 64  # two prompts across, two strengths down
    # The options beside it are an options file themselves; the run they describe is finished.
    assert main(["train", str(out / "options.yml")]) == 0
    assert not list(tmp_path.rglob("*.partial"))


def test_other_options_do_not_resume_silently(options_file, capsys):
    assert main(["train", str(options_file), "train.steps=1"]) == 0
    assert main(["train", str(options_file), "train.steps=1", "seed=5"]) == 2
    assert "--no-resume" in capsys.readouterr().err
    assert main(["train", str(options_file), "train.steps=1", "seed=5", "--no-resume"]) == 0


def test_dry_run_prints_the_options_and_writes_nothing(options_file, tmp_path, capsys):
    assert main(["train", str(options_file), "train.steps=7", "--dry-run"]) == 0
    assert "steps: 7" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_all_problems_together_before_anything_is_loaded(options_file, capsys, monkeypatch):
    monkeypatch.setattr("mixshow.recipes.train.load_base", lambda *_, **__: pytest.fail("loaded the base"))
    wrong = ["base=nowhere/at/all", "data.images=none", "data.masks=nor", "sample.prompts=no.txt", "concept.tokens=pip"]
    assert main(["train", str(options_file), *wrong]) == 2
    message = capsys.readouterr().err
    for expected in (
        "base: no such folder",
        "data.images: no such folder: none",
        "data.masks",
        "no.txt",
        "found 'pip'",
    ):
        assert expected in message
    assert main(["train", str(options_file), "train.stpes=3", "data.size=big", "loss.mask=maybe"]) == 2
    message = capsys.readouterr().err
    assert "train.stpes: unknown option; did you mean 'steps'" in message
    assert "data.size: expected a whole number" in message and "loss.mask: expected true or false" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.masks=null", "needs data.masks"),
        ("train.repeats=3", "either steps or repeats"),
        ("data.size=60", "expected a multiple of 64 pixels"),
        ("concept.initialiser=<rand-0.1>+zebra", "zebra"),
        ("network.rank=0", "network.rank: expected at least 1"),
        ("train.lr.unet=-1", "expected 0 or more"),
    ],
)
def test_one_clear_line_and_status_2(options_file, capsys, override, expected, tmp_path):
    assert main(["train", str(options_file), override]) == 2
    assert expected in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_concept_tokens_that_the_base_already_knows_are_refused(options_file, tiny, tmp_path, capsys):
    from mixshow.edlora.concept import attach_concepts
    from mixshow.models.base import save_base
    from tests.tiny import tiny_concept

    known, attachment = attach_concepts(tiny, [tiny_concept(tiny, "pip")])
    with attachment:
        save_base(known, tmp_path / "fused")
    assert main(["train", str(options_file), f"base={tmp_path / 'fused'}"]) == 2
    assert "<pip1>" in capsys.readouterr().err


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: file.stem)
def test_every_options_file_trains(file, tiny_folder, tmp_path, capsys):
    data = write_pictures(tmp_path / "data", 2)
    overrides = [
        f"base={tiny_folder}",
        f"output={tmp_path / 'out'}", "train.repeats=null", "train.steps=1",
        "train.batch_size=1", "data.size=64", "sample.prompts=[]",
        "concept.initialiser=<rand-0.1>+boy", "train.mixed_precision=fp32",
    ]  # fmt: skip
    if file.stem == "photo_dog":
        overrides.append(f"data.images={ROOT / 'tests' / 'data' / 'photos' / 'dog6'}")
    else:
        overrides += [f"data.{part}s={data / part}" for part in ("image", "mask", "caption")]
    assert main(["train", str(file), *overrides]) == 0
    assert read_concept(tmp_path / "out" / "concept.safetensors").embeddings


def test_every_algorithm_has_an_options_file():
    in_files = {file.stem for file in OPTIONS if file.parent.name == "lycoris"}
    assert in_files == set(ALGORITHMS) - {"norm"} | {"blocks"}  # norms are in no placement
    assert len(OPTIONS) - len(in_files) == 10


@pytest.mark.slow
def test_ctrl_c_exits_130_and_training_resumes(options_file, tmp_path):
    command = [
        sys.executable,
        "-m",
        "mixshow",
        "train",
        str(options_file),
        "train.steps=500",
        "sample.prompts=[]",
        "checkpoint.every=1",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    checkpoints = tmp_path / "out" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step_*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130 and "training and fusing go on" in message and "Traceback" not in message
    last = max(int(path.name[5:]) for path in checkpoints.glob("step_*"))
    assert 0 < last < 500
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_two_processes_see_the_samples_of_one(options_file, tmp_path):
    common = ["sample.prompts=[]", "loss.attention_weight=0", "train.steps=3"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "mixshow"]
    two = [*launch, "train", str(options_file), *common, "train.batch_size=1", f"output={tmp_path / 'two'}"]
    subprocess.run(two, cwd=ROOT, check=True)
    assert main(["train", str(options_file), *common, "train.batch_size=2", f"output={tmp_path / 'one'}"]) == 0
    one, both = (read_concept(tmp_path / name / "concept.safetensors") for name in ("one", "two"))
    for token, vectors in one.embeddings.items():
        assert (vectors - both.embeddings[token]).norm() < 1e-3 * vectors.norm()


def test_photographs_are_fit_to_ship():
    folder = ROOT / "tests" / "data" / "photos" / "dog6"
    assert len(list(folder.glob("*.jpg"))) == 5 and (folder / "LICENCE.md").is_file()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1_500_000
