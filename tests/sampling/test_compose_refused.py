"""Scenes that `mixshow compose` refuses in one line each, and what is left when it is stopped: nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mixshow.cli.main import main
from tests.sampling.scenes import PERSON


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
