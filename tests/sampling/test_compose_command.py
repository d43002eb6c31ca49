"""`mixshow compose` and `mixshow sample`, through the real entry point on a tiny random base."""

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


def test_a_colour_the_picture_does_not_have(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (128, 64), (0, 0, 255)).save(tmp_path / "painted.png")
    scene |= {"masks": str(tmp_path / "painted.png"), "regions": [{"colour": "#ff0000", "prompt": "a boy"}]}
    assert compose(scene) == 2
    assert "no pixel has the colour #ff0000; it has most of #0000ff" in capsys.readouterr().err
    scene["regions"][0]["colour"] = "reddish"
    assert compose(scene) == 2
    assert 'regions[0].colour: expected a colour such as "#ff0000" or red' in capsys.readouterr().err
    del scene["masks"]
    scene["regions"][0] = {"mask": str(tmp_path / "black.png"), "prompt": "a boy"}
    Image.new("L", (128, 64)).save(tmp_path / "black.png")
    assert compose(scene) == 2
    assert "black.png: expected a mask with some white in it, found only black" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"regions": [{"box": [0, 0, 200, 64], "prompt": "a"}]}, ["regions[0].box", "inside the picture of 128x64"]),
        ({"regions": [{"box": [0.5, 0, 0.2, 1], "prompt": "a"}]}, ["regions[0].box", "no area"]),
        ({"regions": [{"box": [0.5, 0, 1.2, 1], "prompt": "a"}]}, ["regions[0].box", "fractions from 0 to 1"]),
        ({"regions": [{"box": [-1, 0, 5, 5], "prompt": "a"}]}, ["regions[0].box", "not inside"]),
        ({"regions": [{"boxes": 1}]}, ["boxes: unknown option; did you mean 'box'?", "prompt: missing"]),
        ({"regions": [{"prompt": "a", "colour": None}]}, ["regions[0]: expected one of box, polygon, mask"]),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1], "mask": "m.png"}]}, ["one shape, found box and mask"]),
        ({"regions": [{"prompt": "a", "polygon": [[0, 0], [1, 1]]}]}, ["polygon: expected at least 3 corners"]),
        ({"regions": [{"prompt": "a", "polygon": [[0, 0], [1, 1], [0.5, 0.5]]}]}, ["polygon: its 3 corners have no"]),
        ({"regions": [{"prompt": "a", "polygon": [[0, 0], [9, 9], [0, 70]]}]}, ["corner [0, 70] is not inside"]),
        ({"regions": [{"prompt": "a", "mask": "nowhere.png"}]}, ["regions[0].mask: nowhere.png: no such picture"]),
        ({"regions": [{"prompt": "a", "colour": "red"}]}, ["regions[0].colour", "in 'masks', found none"]),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1], "start": 0.5, "end": 0.5}]}, ["start, end: expected"]),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1], "guidance": 0.5}]}, ["regions[0].guidance: expected 1"]),
        ({"region_schedule": [[0, 1.5]]}, ["region_schedule: expected pairs such as"]),
        ({"region_schedule": [[0, 1], [0, 0.5]]}, ["region_schedule: expected one factor for each part"]),
        ({"regions": [], "base_prompt": "a", "common_prompt": "b"}, ["base_prompt: expected regions", "common_prom"]),
        ({"base_prompt": "a <pop1>", "background_prompt": "a <pop2>"}, ["<pop1> is no", "<pop2> is no"]),
        ({"common_prompt": "a <pop1>", "common_negative": "a <pop2>"}, ["<pop1> is no", "<pop2> is no"]),
        ({"masks": "nowhere.png"}, ["masks: expected regions that name a 'colour'"]),
        ({"layout": "1,2,1"}, ["regions[0].box: expected no shape beside the scene's layout '1,2,1'"]),
        ({"layout": "1,1; 1", "regions": [{"prompt": "a"}]}, ["as many cells as regions (1), found 3"]),
        ({"layout": "1,,1", "regions": [{"prompt": "a"}]}, ["layout: row 1: expected widths above 0", "'1,,1'"]),
        ({"layout": "1", "regions": []}, ["layout: expected regions for the cells"]),
        (
            {"regions": [{"box": [0, 0, 1, 1], "prompt": "a", "feather": 4}], "edges": "hard"},
            ["regions[0].feather: expected edges: soft"],
        ),
        (
            {"regions": [{"box": [0, 0, 1, 1], "prompt": "a", "priority": 1}, {"box": [0, 0, 0.5, 1], "prompt": "b"}]},
            ["regions[1]: lies wholly under regions of higher priority"],
        ),
        ({"rewrite": "[a]-*-[]-*-[1, 2", "regions": []}, ["rewrite, column"]),
        ({"rewrite": "[a]-*-[]-*-[0, 0, 1, 1]"}, ["regions from one place"]),
        ({"layout": "nowhere.txt", "regions": []}, ["nowhere.txt"]),
        ({"prompt": "a <pop1>"}, ["<pop1> is no concept token", "known: none"]),
        ({"size": [100, 60]}, ["width: expected a multiple of 64", "height: expected a multiple of 64"]),
        ({"size": None}, ["size: expected [width, height]"]),
        ({"pose": {"people": []}}, ["pose.people: expected at least one person"]),
        ({"pose": {"people": [[[1, 2]]]}}, ["pose: people[0]: expected 18 key points, found 1"]),
        ({"pose": {"people": [[[900, 900]] * 18]}}, ["pose: people", "inside the picture of 128x64"]),
        ({"pose": {}}, ["expected one of image, json, people and photo, found none"]),
        ({"pose": {"json": "nowhere.json"}}, ["pose: nowhere.json"]),
        ({"pose": {"image": "nowhere.png"}}, ["pose: nowhere.png: no such picture"]),
        ({"pose": {"png": "AAAA"}}, ["pose: "]),
        ({"pose": {"people": [PERSON], "adapter": "./nowhere"}}, ["pose.adapter", "no such folder"]),
        ({"model": "./nowhere", "concepts": ["lost.pth"]}, ["model: ", "concepts[0]: lost.pth: no such"]),
        ({"scheduler": "DPMSolverMultistop"}, ["scheduler", "did you mean 'DPMSolverMultistepScheduler'"]),
        ({"steps": 0, "seeds": [], "output": "a.jpg"}, ["steps: ", "seeds: ", "output: "]),
        ({"device": "abacus"}, ["device: expected"]),
    ],
)  # fmt: skip
def test_bad_input(
    compose: Callable[..., int],
    scene: dict,
    tmp_path: Path,
    change: dict,
    messages: list[str],
    capsys: pytest.CaptureFixture,
) -> None:
    assert compose(scene | change) == 2
    said = capsys.readouterr().err
    for message in messages:
        assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*.p*"))  # no picture, nothing partial


def test_a_black_or_broken_pose_picture(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pose = tmp_path / "pose.png"
    Image.new("RGB", (128, 64)).save(pose)
    scene["pose"] = {"image": str(pose), "adapter": scene["pose"]["adapter"]}
    assert compose(scene) == 2
    assert "at least one person" in capsys.readouterr().err
    pose.write_bytes(pose.read_bytes()[:40])
    assert compose(scene) == 2
    assert "truncated" in capsys.readouterr().err


def test_pictures_without_a_scene_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert main(["compose", str(picture)]) == 2
    assert "no scene in its metadata" in capsys.readouterr().err


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


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
def test_ctrl_c_and_a_full_disk_leave_nothing_half_written(
    scene: dict,
    compose: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    assert compose(scene) == status
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["scene.yml"]
