"""`mixshow compose --check` and `--preview`, seeds and grids: what needs no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mixshow.config.seeds import parse_seeds
from mixshow.core.errors import MixshowError
from mixshow.edlora.concept import save_concept
from mixshow.models import Base
from mixshow.sampling.pictures import picture_grid, read_about
from tests.tiny import tiny_concept


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("mixshow.recipes.compose.load_base", fail)
    monkeypatch.setattr("mixshow.recipes.conditions.load_adapter", fail)


@pytest.mark.usefixtures("no_model")
def test_a_scene_is_checked_without_its_model(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert compose(scene, "--check") == 0
    assert "nothing found to be wrong" in capsys.readouterr().err
    scene |= {"size": [100, 64], "prompt": "a <pop1>"}
    assert compose(scene, "--check") == 2
    said = capsys.readouterr().err
    assert "width: expected a multiple of 64" in said and "<pop1> is no concept token" in said
    wrong = {"device": "abacus", "scheduler": "DDIM", "scheduler_options": {"eta_max": 1}, "concepts": ["lost.pth"]}
    assert compose(scene | wrong, "--check") == 2
    said = capsys.readouterr().err
    assert "device: expected" in said and "'eta_max'" in said and "concepts[0]: lost.pth" in said
    assert [path.name for path in tmp_path.iterdir()] == ["scene.yml"]


@pytest.mark.usefixtures("no_model")
def test_concept_tokens_are_checked_without_the_model(
    tiny: Base, compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_concept(tiny_concept(tiny, "pip"), tmp_path / "pip.safetensors")
    scene |= {"concepts": [str(tmp_path / "pip.safetensors")], "prompt": "a <pip1> <pip2>"}
    assert compose(scene, "--check") == 0
    assert compose(scene, "--check", "prompt=a <pip3>") == 2
    assert "<pip3> is no concept token of model" in capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
def test_a_preview_needs_no_model(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    scene["model"] = "./nowhere"
    assert compose(scene, "--preview") == 0
    assert Image.open(tmp_path / "scene_preview.png").width == 512
    assert compose({"prompt": "a boy", "output": scene["output"]}, "--preview") == 2
    assert "found nothing to preview" in capsys.readouterr().err
    scene["regions"][0]["box"] = [0, 0, 900, 9]
    assert compose(scene, "--preview") == 2
    assert "regions[0].box" in capsys.readouterr().err


def test_seed_ranges_make_a_picture_each(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    assert compose(scene, "seeds=2-4", "steps=1") == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"scene_seed{seed}.png" for seed in (2, 3, 4)]
    assert compose(scene | {"seeds": [7, "9-9"]}, "steps=1") == 0
    assert read_about(tmp_path / "scene_seed9.png")["scene"]["seeds"] == [9]
    assert compose(scene, "seeds=4-2") == 2
    assert compose(scene, "seeds=[1,1]") == 2


def test_seed_lists() -> None:
    assert parse_seeds("1, 5,7-9") == [1, 5, 7, 8, 9]
    assert parse_seeds(3) == [3]
    assert parse_seeds([4, "0-2"]) == [4, 0, 1, 2]
    with pytest.raises(MixshowError):
        parse_seeds("5-3")


def test_grids_have_room_for_every_picture() -> None:
    images = [Image.new("RGB", (40, 20), (i, 0, 0)) for i in range(5)]
    grid = picture_grid(images, 3, ["a label that is much too long"] * 5)
    assert grid.width == 3 * 44 + 4
    places = [(4 + 44 * (i % 3) + 20, grid.height * (1 + 2 * (i // 3)) // 4 + 8) for i in range(5)]
    assert [grid.getpixel(place)[0] for place in places] == list(range(5))
    assert picture_grid(images[:1], 3).size == (48, 28)
