"""`mixshow compose` with pictures to begin from, second passes, previews, sheets, weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mixshow.cli.main import main
from mixshow.config.region import RegionOptions
from mixshow.recipes.passes import region_numbers
from mixshow.sampling.pictures import read_about, save_picture


@pytest.fixture
def scene(tiny_folder: Path, tmp_path: Path) -> dict:
    """A small scene that works."""
    return {
        "model": str(tiny_folder),
        "size": [128, 64],
        "prompt": "a picture of the beach",
        "regions": [{"box": [0, 0, 40, 64], "prompt": "a boy"}, {"box": [64, 0, 128, 64], "prompt": "a girl"}],
        "steps": 2,
        "guidance": 3,
        "precision": "fp32",
        "output": str(tmp_path / "scene.png"),
    }


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_only_the_region_that_failed_is_made_again(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    assert compose(scene, "seeds=[7]") == 0
    assert main(["compose", str(tmp_path / "scene.png"), "--redo", "0", "image.margin=4", "image.feather=8"]) == 0
    before, after = pixels(tmp_path / "scene.png"), pixels(tmp_path / "scene_redo.png")
    assert (before[:, 48:] == after[:, 48:]).all() and (before[:, :40] != after[:, :40]).any()
    about = read_about(tmp_path / "scene_redo.png")
    assert about["seed"] == 8 and about["scene"]["image"]["redo"] == ["0"]
    (tmp_path / "scene.png").unlink()  # the picture travels in the other one's metadata
    assert main(["compose", str(tmp_path / "scene_redo.png")]) == 0
    assert (pixels(tmp_path / "scene_redo_again.png") == after).all()


def test_a_larger_picture_s_region_is_made_again_at_its_size(
    compose: Callable[..., int], scene: dict, tmp_path: Path
) -> None:
    assert compose(scene | {"hires": {"scale": 1.9, "upscale": "picture"}}) == 0
    assert Image.open(tmp_path / "scene.png").size == (256, 128)
    assert main(["compose", str(tmp_path / "scene.png"), "--redo", "1", "seeds=[5,6]"]) == 0
    before = pixels(tmp_path / "scene.png")
    for seed in (5, 6):
        after = pixels(tmp_path / f"scene_redo_seed{seed}.png")
        assert after.shape == before.shape
        assert (before[:, :104] == after[:, :104]).all() and (before[:, 128:] != after[:, 128:]).any()


def test_a_picture_to_begin_from(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "photo.png")
    scene["image"] = {"file": str(tmp_path / "photo.png"), "strength": 0.5}
    assert compose(scene) == 0
    assert "photo.png: 32x32 pixels, stretched over the picture of 128x64" in capsys.readouterr().err
    (tmp_path / "photo.png").unlink()
    assert main(["compose", str(tmp_path / "scene.png")]) == 0
    assert (pixels(tmp_path / "scene.png") == pixels(tmp_path / "scene_again.png")).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": {"file": "nowhere.png"}}, "image.file: nowhere.png: no such picture"),
        ({"image": {}}, "image.file: expected a picture to begin from, found none"),
        ({"image": {"file": "a.png", "strength": 0}}, "image.strength: expected above 0, up to 1, found 0"),
        ({"image": {"file": "a.png", "redo": [0]}, "regions": []}, "image.redo: expected regions in the scene"),
        ({"hires": {}, "scheduler": "IPNDM"}, "scheduler: expected one that can begin from a picture"),
        ({"hires": {"scale": 0.5}}, "hires.scale: expected above 1"),
        ({"hires": {"scale": 2, "size": [256, 128]}}, "hires.size: expected it or scale, found both"),
        ({"hires": {"size": [200, 128]}}, "hires.size, width: expected a multiple of 64 pixels"),
        ({"hires": {}, "size": None, "regions": []}, "size: expected [width, height] in pixels, which a scene with"),
        ({"cfg_rescale": 1.5}, "cfg_rescale: expected 0 to 1, found 1.5"),
        ({"clip_skip": -1}, "clip_skip: expected 0 or more layers, found -1"),
        ({"clip_skip": 9}, "clip_skip: expected 0 to 1 for the text encoder of model"),
        ({"prompt": "a (red dog"}, "prompt 'a (red dog', column 3: expected its partner behind it"),
        ({"negative_prompt": "a red] dog"}, "column 6: expected '[' before it"),
        ({"previews": -1}, "previews: expected 0 or more steps"),
    ],
)
def test_bad_input(
    compose: Callable[..., int], scene: dict, tmp_path: Path, change: dict, message: str, capsys: pytest.CaptureFixture
) -> None:
    assert compose(scene | change) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


def test_regions_are_meant_by_number_or_concept() -> None:
    entries = [
        RegionOptions(prompt="{concept} at the beach", concept="pip", box=(0, 0, 1, 1)),
        RegionOptions(prompt="a <luma1> <luma2>", box=(0, 0, 1, 1)),
        RegionOptions(prompt="a <pip1> <pip2>", box=(0, 0, 1, 1)),
    ]
    found = [region_numbers(name, entries) for name in (1, "2", "pip", "luma")]
    assert found == [[1], [2], [0, 2], [1]]


def test_regions_to_make_again_are_named(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_picture(Image.new("RGB", (128, 64)), tmp_path / "bare.png", {"scene": {**scene, "output": "x.png"}, "seed": 0})
    for region, message in (
        ("2", "a region from 0 to 1, found 2"),
        ("pip", "a region's number from 0 to 1 or its concept, found 'pip'"),
    ):
        assert main(["compose", str(tmp_path / "bare.png"), "--redo", region]) == 2
        assert f"image.redo: expected {message}" in capsys.readouterr().err
    assert compose(scene, "--redo", "0") == 2
    assert "--redo: expected a picture that mixshow made" in capsys.readouterr().err


def test_weights_and_literal_brackets(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    found = {}
    prompts = {"weighed": "a (boy:1.6)", "escaped": r"a \(boy:1.6\)", "plain": "a boy"}
    for name, prompt in prompts.items():
        scene["regions"][0]["prompt"] = prompt
        assert compose(scene, f"output={tmp_path / name}.png") == 0
        found[name] = pixels(tmp_path / f"{name}.png")
    scene["regions"][0]["prompt"] = "a (boy:1.6)"
    assert compose(scene, "prompt_weights=false", f"output={tmp_path / 'literal'}.png") == 0
    assert (pixels(tmp_path / "literal.png") == found["escaped"]).all()
    assert (found["weighed"] != found["plain"]).any() and (found["weighed"] != found["escaped"]).any()


def test_prompts_of_many_windows_in_one_scene(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    long = "a red dog on the beach , " * 12
    scene["regions"][1]["prompt"], scene["negative_prompt"] = long, "rain BREAK blue"
    assert compose(scene) == 0
    whole = pixels(tmp_path / "scene.png")
    assert compose(scene, "long_prompts=cut") == 0
    assert (pixels(tmp_path / "scene.png") != whole).any()


def test_previews_are_written_while_it_runs(
    compose: Callable[..., int], scene: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, int]] = []

    def note(image: Image.Image, path: Path, about: object = None) -> None:
        sizes.append(image.size)
        save_picture(image, path)
        assert (tmp_path / "scene_running.png").is_file()

    monkeypatch.setattr("mixshow.recipes.running.save_picture", note)
    assert compose(scene, "previews=1", "steps=3", "seeds=[1,2]", "batch_size=2") == 0
    assert len(sizes) == 3 and sizes[0][0] == 2 * (64 + 4) + 4
    assert not (tmp_path / "scene_running.png").exists()
    assert "previews" not in read_about(tmp_path / "scene_seed1.png")["scene"]

    def fail(*_: object) -> None:
        (tmp_path / "scene_running.png").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("mixshow.recipes.running.save_picture", fail)
    assert compose(scene, "previews=1") == 130
    assert not (tmp_path / "scene_running.png").exists()


def test_previews_leave_a_picture_of_their_name_alone(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    (tmp_path / "scene_running.png").write_bytes(b"mine")
    assert compose(scene, "previews=1") == 0
    assert (tmp_path / "scene_running.png").read_bytes() == b"mine"
    assert not (tmp_path / "scene_running_1.png").exists()


def test_several_scenes_on_one_sheet(
    compose: Callable[..., int],
    scene: dict,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[object] = []
    load_base = __import__("mixshow.recipes.compose", fromlist=["load_base"]).load_base
    monkeypatch.setattr("mixshow.recipes.compose.load_base", lambda *a, **k: loaded.append(a) or load_base(*a, **k))
    other = tmp_path / "other.yml"
    other.write_text(yaml.safe_dump(scene | {"prompt": "rain & red", "regions": [], "scheduler": "DDIM"}))
    assert compose(scene, str(other)) == 2
    assert "other.yml: expected an output of its own" in capsys.readouterr().err
    other.write_text(yaml.safe_dump(yaml.safe_load(other.read_text()) | {"output": str(tmp_path / "other.png")}))
    sheet = tmp_path / "sheet.html"
    assert compose(scene, str(other), "seeds=0-1", "--sheet", str(sheet)) == 0
    page = sheet.read_text()
    assert page.count("<figure>") == 4 and page.count("<h2>") == 2 and len(loaded) == 1
    assert "scene_seed1.png, seed 1" in page and "a girl" in page and "box [64, 0, 128, 64]" in page
    assert "<td>scheduler</td><td>DDIM</td>" in page and "rain &amp; red" in page
    assert compose(scene, "sheet=true") == 0 and (tmp_path / "scene.html").is_file()
    other.write_text(yaml.safe_dump(scene | {"output": "x.png", "size": [100, 64]}))
    loaded.clear()
    assert compose(scene, str(other)) == 2 and not loaded  # all are checked before the first is made
