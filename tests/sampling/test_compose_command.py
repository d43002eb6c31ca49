"""`mixshow compose`, through the real entry point on a tiny random base: what scenes say, and pictures made again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mixshow.cli.main import main
from mixshow.core.seeding import derived_seed
from mixshow.edlora.concept import save_concept
from mixshow.models import Base
from mixshow.sampling.pictures import read_about
from tests.sampling.scenes import PERSON, same
from tests.tiny import tiny_concept

OPTIONS = Path(__file__).resolve().parents[2] / "options" / "compose"


def test_a_picture_is_made_again_from_itself(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    pose = tmp_path / "pose.json"
    pose.write_text(json.dumps({"people": [{"pose_keypoints_2d": [v for p in PERSON for v in (*p, 0.9)]}]}))
    scene["pose"].update(json=str(pose))
    del scene["pose"]["people"]
    assert compose(scene, "seeds=[3,4,5]", "batch_size=2", "grid=true") == 0
    pose.unlink()
    names = ["scene_seed3.png", "scene_seed4.png", "scene_seed5.png", "scene_grid.png"]
    assert all((tmp_path / name).is_file() for name in names)
    picture = tmp_path / "scene_seed4.png"
    assert main(["compose", str(picture)]) == 0
    assert same(picture, tmp_path / "scene_seed4_again.png")
    assert not same(picture, tmp_path / "scene_seed3.png")
    about, again = read_about(picture), read_about(tmp_path / "scene_seed4_again.png")
    assert about == again
    assert about["seed"] == 4
    assert about["scene"]["regions"][1]["box"] == [64, 0, 128, 64]
    assert len(about["scene"]["pose"]["people"][0]) == 18


def test_a_pose_picture_travels_in_the_metadata(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    drawing = tmp_path / "pose.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)).save(drawing)
    scene["pose"] = {"image": str(drawing), "adapter": scene["pose"]["adapter"]}
    assert compose(scene) == 0
    drawing.unlink()
    assert main(["compose", str(tmp_path / "scene.png"), f"output={tmp_path / 'other.png'}"]) == 0
    assert same(tmp_path / "scene.png", tmp_path / "other.png")


@pytest.mark.parametrize("source", ["rewrite", "layout"])
def test_published_regions_make_the_same_picture(
    compose: Callable[..., int], scene: dict, tmp_path: Path, source: str
) -> None:
    assert compose(scene) == 0
    ours = (tmp_path / "scene.png").rename(tmp_path / "ours.png")
    layout = tmp_path / "layout.txt"
    layout.write_text("char1='a boy' box1='[0, 0, 64, 64]'\nchar2='a girl'\nbox2='[0, 64, 64, 128]'\n")
    del scene["regions"]
    scene["layout"] = str(layout)
    if source == "rewrite":
        del scene["layout"]
        scene["rewrite"] = "[a boy]-*-[]-*-[0, 0, 64, 64]|[a girl]-*-[]-*-[0, 64, 64, 128]"
    assert compose(scene) == 0
    assert same(ours, tmp_path / "scene.png")


def test_regions_of_every_shape_are_made_again_from_the_picture(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:, 4:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    painted = np.zeros((64, 128, 3), dtype=np.uint8)
    painted[:, 100:] = (0, 0, 255)
    Image.fromarray(painted).save(tmp_path / "painted.png")
    scene["masks"] = str(tmp_path / "painted.png")
    scene["regions"] = [
        {"mask": str(tmp_path / "mask.png"), "prompt": "a boy", "feather": 0.1, "priority": 1},
        {"polygon": [[0.4, 0], [0.9, 0], [0.6, 1]], "prompt": "a girl"},
        {"colour": "#0000ff", "prompt": "a dog", "weight": 2},
        {"box": [0.5, 0.5, 1, 1], "prompt": "a hat"},
    ]
    assert compose(scene) == 0
    said = capsys.readouterr().err
    assert "mask.png: 32x32 pixels, stretched over the picture of 128x64" in said
    assert "regions 1 and 3 overlap and share the place" in said  # 2 and 3 have weights, 0 is above all
    (tmp_path / "mask.png").unlink()
    (tmp_path / "painted.png").unlink()
    assert main(["compose", str(tmp_path / "scene.png")]) == 0
    assert same(tmp_path / "scene.png", tmp_path / "scene_again.png")
    assert read_about(tmp_path / "scene.png")["scene"]["edges"] == "soft"


def test_common_prompts_stand_in_every_region(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    written_out = scene | {
        "regions": [
            {"box": [0, 0, 0.5, 1], "prompt": "a photo of a boy , rain", "negative_prompt": "red, blue"},
            {"box": [0.5, 0, 1, 1], "prompt": "a photo of a girl , rain", "negative_prompt": "hat, blue"},
        ],
        "negative_prompt": "red, blue",
    }
    assert compose(written_out) == 0
    expected = (tmp_path / "scene.png").rename(tmp_path / "written_out.png")
    scene["regions"][1]["negative_prompt"] = "hat"
    common = {"common_prompt": "a photo of {prompt} , rain", "common_negative": "blue", "negative_prompt": "red"}
    assert compose(scene | common) == 0
    assert same(expected, tmp_path / "scene.png")
    assert main(["compose", str(tmp_path / "scene.png")]) == 0
    assert same(expected, tmp_path / "scene_again.png")


def test_a_region_names_its_concept(
    tiny: Base, compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_concept(tiny_concept(tiny, "pip"), tmp_path / "pip.safetensors")
    scene["concepts"] = [str(tmp_path / "pip.safetensors")]
    scene["regions"][0]["prompt"] = "a photo of <pip1> <pip2>"
    assert compose(scene) == 0
    expected = (tmp_path / "scene.png").rename(tmp_path / "written_out.png")
    scene["regions"][0] |= {"prompt": "a photo of {concept}", "concept": "pip"}
    assert compose(scene) == 0
    assert same(expected, tmp_path / "scene.png")
    assert main(["compose", str(tmp_path / "scene.png")]) == 0
    assert same(expected, tmp_path / "scene_again.png")
    assert compose(scene, "--preview", "model=./nowhere") == 0
    for change, message in (
        ({"concept": "pop"}, "regions[0].concept: the model knows no 'pop'; did you mean 'pip'?"),
        ({"concept": None}, "regions[0].concept: expected the name of a concept for {concept}"),
        ({"prompt": "a boy"}, "regions[0].prompt: expected {concept}, where the tokens of 'pip' stand"),
    ):
        regions = [scene["regions"][0] | change, scene["regions"][1]]
        assert compose(scene | {"regions": regions}, "--check") == 2
        assert message in capsys.readouterr().err
    assert compose(scene | {"concepts": []}, "--check") == 2
    assert "regions[0].concept: the model knows no 'pip'; it has none" in capsys.readouterr().err


def test_rows_and_columns_are_boxes(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    assert compose(scene, "edges=soft") == 0
    boxes = (tmp_path / "scene.png").rename(tmp_path / "boxes.png")
    scene["layout"] = "1,1"
    scene["regions"] = [{"prompt": region["prompt"]} for region in scene["regions"]]
    assert compose(scene) == 0
    assert same(boxes, tmp_path / "scene.png")


def test_every_options_file_runs(
    tiny: Base, tiny_folder: Path, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(OPTIONS.glob("*.yml"))
    assert len(files) >= 5
    (tmp_path / "options").symlink_to(OPTIONS.parent)
    (tmp_path / "data" / "poses").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for file in files:
        options = yaml.safe_load(file.read_text())
        Image.new("RGB", options["size"], "white").save(tmp_path / "data" / "poses" / "three.png")
        named = [region.get("concept") or re.findall(r"<(\w+)1>", region["prompt"]) for region in options["regions"]]
        names = [name for found in named for name in ([found] if isinstance(found, str) else found)]
        concepts = []
        for name in names:
            concepts.append(tmp_path / f"{name}.safetensors")
            save_concept(tiny_concept(tiny, name, seed=derived_seed(0, name)), concepts[-1])
        overrides = [
            f"model={tiny_folder}", f"concepts=[{','.join(map(str, concepts))}]",
            *([f"pose.adapter={adapter_folder}"] if "pose" in options else []),
            "steps=1", "seeds=[0]", "output=out.png",
        ]  # fmt: skip
        assert main(["compose", str(file), *overrides]) == 0
        scale = options.get("hires", {}).get("scale", 1)
        assert Image.open(tmp_path / "out.png").size == tuple(side * scale for side in options["size"])
