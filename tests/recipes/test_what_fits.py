"""What is known of a model from its file alone: the second pass's size, and whether conditions' networks fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import mixshow.recipes.compose as recipe
from mixshow.cli.main import main
from mixshow.config.load import build
from mixshow.config.scene import SceneOptions
from mixshow.recipes.check import check_options
from mixshow.sampling.pictures import read_about
from tests.models.checkpoints import original_tensors, published_shape
from tests.sampling.test_controlnet import picture, tiny_union

SCENE = {"size": [128, 64], "prompt": "a picture of the beach", "steps": 1, "precision": "fp32"}
REGION = {"box": [0, 0, 0.5, 1], "prompt": "a boy"}


def pickled(kind: str, folder: Path) -> str:
    """A model as a `.ckpt` file."""
    torch.save(original_tensors(published_shape(kind), kind), folder / "model.ckpt")
    return str(folder / "model.ckpt")


@pytest.mark.parametrize("file", [True, False])
def test_a_scale_is_rounded_to_what_any_model_can_make(
    tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: bool
) -> None:
    model = pickled("sd1", tmp_path) if file else str(tiny_folder)
    scene = {**SCENE, "model": model, "output": "a.png", "hires": {"scale": 1.9}}
    with caplog.at_level("INFO", "mixshow"):
        second = check_options(build(SceneOptions, scene), "test").scene.second
    assert second is not None and second.size == (256, 128)
    assert "hires: 243.2x121.6 pixels, rounded to 256x128: the model's sides are multiples of 64" in caplog.text
    caplog.clear()
    check_options(build(SceneOptions, scene | {"hires": {"scale": 2}}), "test")
    assert "rounded" not in caplog.text


def test_a_picture_whose_region_was_made_again_has_a_preview(
    compose: Callable[..., int], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    made = tmp_path / "scene.png"
    scene = {**SCENE, "model": str(tiny_folder), "output": str(made), "regions": [REGION], "hires": {"scale": 1.9}}
    assert compose(scene) == 0 and Image.open(made).size == (256, 128)
    assert main(["compose", str(made), "--redo", "0"]) == 0
    again = tmp_path / "scene_redo.png"
    assert read_about(again)["scene"]["hires"]["scale"] == 1.9
    for model in ([], ["model=./nowhere"]):
        assert main(["compose", str(again), *model, "--preview"]) == 0
        (tmp_path / "scene_redo_again_preview.png").unlink()
    assert "stretched" not in capsys.readouterr().err


def test_every_condition_is_looked_at_before_a_pickled_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded a model")

    monkeypatch.setattr(recipe, "load_base", load)
    tiny_union(published_shape("xl")).save_pretrained(tmp_path / "union")
    picture().save(tmp_path / "sketch.png")
    first = {"image": str(tmp_path / "sketch.png"), "controlnet": str(tmp_path / "union"), "control_type": 1}
    scene = {**SCENE, "model": pickled("xl", tmp_path), "output": str(tmp_path / "a.png")}
    path = tmp_path / "scene.yml"
    for kind, status in ((2, 0), (9, 2), (None, 2)):
        path.write_text(yaml.safe_dump({**scene, "conditions": [first, {**first, "control_type": kind}]}))
        assert main(["compose", str(path), "--check"]) == status
        assert ("conditions[1].controlnet" in capsys.readouterr().err) == (status == 2)
    path.write_text(yaml.safe_dump({**scene, "conditions": [first, {**first, "control_type": 9}]}))
    assert main(["compose", str(path)]) == 2
    assert "expected a control_type from 0 to 3" in capsys.readouterr().err
