"""`conditions:` of scenes, through the real entry point: pictures, fits, masks, weights of regions, bad input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import mixshow.recipes.compose as recipe
from mixshow.cli.main import main
from mixshow.models import Base
from mixshow.sampling.pictures import read_about
from tests.sampling.test_controlnet import picture, tiny_controlnet, tiny_union
from tests.tiny import tiny_adapter, tiny_base


@pytest.fixture(scope="module")
def networks(tiny: Base, xl: Base, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of conditions' networks: of this base, and of others."""
    folder = tmp_path_factory.mktemp("networks")
    tiny_controlnet(tiny).save_pretrained(folder / "controlnet")
    tiny_adapter(tiny).save_pretrained(folder / "adapter")
    tiny_controlnet(tiny_base(folder / "wide", width=20)).save_pretrained(folder / "wide")
    tiny_union(xl).save_pretrained(folder / "union")
    return {name: str(folder / name) for name in ("controlnet", "adapter", "wide", "union")}


@pytest.fixture
def scene(tiny_folder: Path, networks: dict[str, str], tmp_path: Path) -> dict[str, Any]:
    picture().save(tmp_path / "sketch.png")
    Image.new("L", (10, 10), 255).save(tmp_path / "white.png")
    return {
        "model": str(tiny_folder),
        "size": [128, 64],
        "prompt": "a picture of the beach",
        "conditions": [
            {"image": str(tmp_path / "sketch.png"), "controlnet": networks["controlnet"], "span": [0.0, 0.5]},
            {"image": str(tmp_path / "sketch.png"), "adapter": networks["adapter"], "weight": 0.5},
        ],
        "regions": [{"box": [0, 0, 0.5, 1], "prompt": "a boy"}],
        "steps": 2,
        "guidance": 3,
        "precision": "fp32",
        "output": str(tmp_path / "scene.png"),
    }


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., bytes]:
    def run(scene: dict[str, Any], *arguments: str) -> bytes:
        path = tmp_path / "scene.yml"
        path.write_text(yaml.safe_dump(scene))
        assert main(["compose", str(path), *arguments]) == 0
        return Image.open(scene["output"]).tobytes()

    return run


def test_conditions_act_and_are_made_again(
    scene: dict[str, Any], compose: Callable[..., bytes], tmp_path: Path
) -> None:
    found = compose(scene)
    kept = read_about(tmp_path / "scene.png")["scene"]["conditions"]
    assert len(kept) == 2 and all(entry["png"] and entry["image"] is None for entry in kept)
    (tmp_path / "sketch.png").unlink()  # the picture carries it
    assert main(["compose", str(tmp_path / "scene.png")]) == 0
    assert Image.open(tmp_path / "scene_again.png").tobytes() == found


def test_weights_and_masks_of_conditions(scene: dict[str, Any], compose: Callable[..., bytes], tmp_path: Path) -> None:
    found = compose(scene)
    without = compose({**scene, "conditions": []})
    off = [{**entry, "weight": 0.0} for entry in scene["conditions"]]
    region = {**scene["regions"][0], "condition_weights": [0.0, 0.0]}
    nowhere = compose({**scene, "regions": [{**region, "box": [0, 0, 1, 1]}]})
    masked = [{**entry, "mask": str(tmp_path / "white.png")} for entry in scene["conditions"]]
    assert found != without == compose({**scene, "conditions": off})
    plain = {**scene["regions"][0], "box": [0, 0, 1, 1]}
    assert nowhere == compose({**scene, "conditions": [], "regions": [plain]})
    assert compose({**scene, "regions": [region]}) not in (found, without)
    assert compose({**scene, "conditions": masked}) == found


def test_a_controlnet_reads_the_pose(
    scene: dict[str, Any],
    networks: dict[str, str],
    compose: Callable[..., bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene["conditions"] = []
    people = [{"person": "waving", "at": [0.3, 0.9]}]
    found = compose({**scene, "pose": {"people": people, "controlnet": networks["controlnet"]}})
    without = compose(scene)
    off = {**scene["regions"][0], "box": [0, 0, 1, 1], "condition_weights": [0.0]}
    posed = {"people": people, "controlnet": networks["controlnet"]}
    assert found != without
    plain = {**off, "condition_weights": []}
    assert compose({**scene, "regions": [off], "pose": posed}) == compose({**scene, "regions": [plain]})
    path = tmp_path / "scene.yml"
    path.write_text(yaml.safe_dump({**scene, "pose": {"people": people, "controlnet": networks["wide"]}}))
    assert main(["compose", str(path), "--check"]) == 2
    assert "pose.controlnet" in capsys.readouterr().err


def test_pictures_of_other_shapes_are_letterboxed_stretched_or_refused(
    scene: dict[str, Any], compose: Callable[..., bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tall = picture().resize((64, 128))
    tall.save(tmp_path / "sketch.png")
    entry = scene["conditions"][0]
    kept = []
    for fit in ("letterbox", "stretch"):
        compose({**scene, "conditions": [{**entry, "fit": fit}]})
        about = read_about(tmp_path / "scene.png")["scene"]["conditions"][0]
        kept.append(about["png"])
    assert kept[0] != kept[1]
    path = tmp_path / "scene.yml"
    path.write_text(yaml.safe_dump({**scene, "conditions": [{**entry, "fit": "refuse"}]}))
    assert main(["compose", str(path), "--check"]) == 2
    assert "expected the aspect ratio of 128x64, found 64x128" in capsys.readouterr().err


def test_what_does_not_fit_is_said_before_a_model_is_loaded(
    scene: dict[str, Any],
    networks: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded a model")

    monkeypatch.setattr(recipe, "load_base", load)
    entry = scene["conditions"][0]
    cases = [
        ({"controlnet": networks["wide"]}, "expected one with cross_attention_dim 16 for base"),
        ({"controlnet": networks["union"]}, "expected one with cross_attention_dim 16 for base"),
        ({"controlnet": networks["adapter"]}, "expected a ControlNet, found T2IAdapter"),
        ({"control_type": 1}, "expected no control_type"),
        ({"controlnet": "no/such/folder"}, "no such folder"),
        ({"adapter": networks["adapter"]}, "expected one of adapter and controlnet, found adapter and controlnet"),
        ({"image": None}, "expected one of image and png, found none"),
        ({"span": [0.5, 0.2]}, "span: expected two numbers"),
        ({"image": "nothing.png"}, "nothing.png: no such picture"),
    ]
    for change, message in cases:
        path = tmp_path / "scene.yml"
        path.write_text(yaml.safe_dump({**scene, "conditions": [{**entry, **change}]}))
        assert main(["compose", str(path)]) == 2
        lines = capsys.readouterr().err
        assert "conditions[0]" in lines and message in lines, (change, lines)
    region = {**scene["regions"][0], "condition_weights": [1, 1, 1]}
    path.write_text(yaml.safe_dump({**scene, "regions": [region]}))
    assert main(["compose", str(path)]) == 2
    assert "expected one for each of 2 conditions" in capsys.readouterr().err
