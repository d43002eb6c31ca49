"""Trainings side by side: each in a process of its own, all together stopped, resumed and told of when they fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from mixshow.core.errors import MixshowError
from mixshow.formats import read_concept
from mixshow.recipes import side_by_side
from mixshow.recipes.side_by_side import train_all
from tests.edlora.conftest import write_pictures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def files(tmp_path: Path, tiny_folder: Path) -> list[Path]:
    """Options of two small trainings on the tiny base."""
    pictures, found = write_pictures(tmp_path / "data"), []
    for name in ("pip", "luma"):
        path = tmp_path / f"{name}.yml"
        path.write_text(
            f"""
base: {tiny_folder}
output: {tmp_path / name}
concept: {{tokens: "<{name}1>+<{name}2>", initialiser: "<rand-0.1>+boy"}}
data: {{images: {pictures}/image, captions: {pictures}/caption, size: 64}}
train: {{steps: 2, batch_size: 2, lr: {{embedding: 1e-2, text_encoder: 1e-3, unet: 1e-3}}}}
checkpoint: {{every: 1}}
"""
        )
        found.append(path)
    return found


def test_one_core_trains_one_after_the_other(files, tmp_path, monkeypatch):
    order: list[Path] = []
    monkeypatch.setattr(side_by_side, "cores", lambda: 1)
    monkeypatch.setattr(side_by_side, "train", order.append)
    train_all(files)
    assert order == files


def test_an_accelerator_trains_one_after_the_other(files, monkeypatch):
    order: list[Path] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(side_by_side, "train", order.append)
    train_all(files)
    assert order == files


@pytest.mark.slow
def test_several_cores_train_at_the_same_time(files, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(side_by_side, "cores", lambda: 2)
    ballast = torch.ones(500_000_000)  # what this process holds is not the trainings'
    assert 0.1 < train_all(files) < 3
    del ballast
    assert read_concept(tmp_path / "pip" / "concept.safetensors").text == "<pip1> <pip2>"
    assert read_concept(tmp_path / "luma" / "concept.safetensors").text == "<luma1> <luma2>"
    assert "training <luma1> <luma2>" in capfd.readouterr().err


@pytest.mark.slow
def test_a_failure_says_which_one_and_why(files, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(side_by_side, "cores", lambda: 2)
    files[1].write_text(files[1].read_text().replace("size: 64", "size: 65"))
    with pytest.raises(MixshowError, match=r"training stopped \(.*luma.yml\); the reason stands above"):
        train_all(files)
    assert "data.size: expected a multiple" in capfd.readouterr().err
    assert (tmp_path / "pip" / "concept.safetensors").is_file()


@pytest.mark.slow
def test_ctrl_c_stops_all_with_a_checkpoint(files: Sequence[Path], tmp_path: Path) -> None:
    for file in files:
        file.write_text(file.read_text().replace("steps: 2", "steps: 5000"))
    program = (
        "import signal, sys; from pathlib import Path; from mixshow.recipes import side_by_side;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # shells let background jobs ignore it
        "side_by_side.cores = lambda: 2;"
        "side_by_side.train_all([Path(file) for file in sys.argv[1:]])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, files)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    folders = [tmp_path / name / "checkpoints" for name in ("pip", "luma")]
    deadline = time.monotonic() + 120
    while not all(list(folder.glob("step_*")) for folder in folders) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in message
    assert message.count("training and fusing go on") == 2
    for folder in folders:
        assert 0 < max(int(path.name[5:]) for path in folder.glob("step_*")) < 5000
