"""`mixshow pose`, through the real entry point."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixshow.cli.main import main
from mixshow.recipes import pose_commands
from mixshow.sampling.named_poses import POSES, named_person
from mixshow.sampling.openpose import read_people

TWO = "[{person: waving, at: [0.3, 0.9], height: 0.7}, {person: sitting, at: [0.7, 0.9], height: 0.7, body: adult}]"


def test_people_are_drawn_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    drawn, written, again = (tmp_path / name for name in ("a.png", "a.json", "b.png"))
    assert main(["pose", "draw", TWO, "--size", "640x320", "--output", str(drawn)]) == 0
    assert main(["pose", "draw", str(drawn), "--output", str(written)]) == 0
    assert main(["pose", "draw", str(written), "--output", str(again)]) == 0
    people, size = read_people(written)
    assert size == (640, 320) == Image.open(drawn).size
    expected = named_person("sitting", (0.7 * 640, 0.9 * 320), 0.7 * 320)
    np.testing.assert_allclose(people[1], expected, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(Image.open(drawn)), np.asarray(Image.open(again)))
    assert main(["pose", "draw", str(written), "--size", "320x320", "--output", str(again)]) == 0
    assert not np.asarray(Image.open(again))[:80].any()  # letterboxed
    capsys.readouterr()
    assert main(["pose", "show", str(written)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert "2 people in pixels, canvas 640x320" in told[0]
    assert len(told) == 3 and told[2].startswith("person 2: 18 of 18 points; box [")


def test_the_pose_of_a_scene_is_drawn(tmp_path: Path) -> None:
    scene = tmp_path / "scene.yml"
    scene.write_text(f"prompt: two\nsize: [320, 256]\npose: {TWO}\n")
    assert main(["pose", "draw", str(scene), "--output", str(tmp_path / "a.png")]) == 0
    assert Image.open(tmp_path / "a.png").size == (320, 256)


def test_named_poses_on_a_sheet(tmp_path: Path) -> None:
    assert main(["pose", "show", "--output", str(tmp_path / "a.png")]) == 0
    width, height = Image.open(tmp_path / "a.png").size
    assert width * height > len(POSES) * 128 * 160


def test_missing_points_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    person = named_person("standing", (50, 90), 80)
    person[4] = 0
    path = tmp_path / "a.json"
    bare = [0.0] * 54
    bare[:3] = (5, 5, 1)
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": person.flatten().tolist()}]}))
    assert main(["pose", "show", str(path)]) == 0
    told = capsys.readouterr().out
    assert "canvas whose size is not told" in told and "17 of 18 points (not right_wrist); box [" in told
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": bare}]}))
    assert main(["pose", "show", str(path)]) == 0
    assert "1 of 18 points" in capsys.readouterr().out


def test_people_of_a_photograph_are_written(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "photo.png")
    person = named_person("standing", (0.5, 0.9), 0.8)
    pose_commands.detect(tmp_path / "photo.png", tmp_path / "a.json", find=lambda _: [person])
    people, size = read_people(tmp_path / "a.json")
    assert size == (200, 100)
    np.testing.assert_allclose(people, [person * (200, 100, 1)], atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw", "[{person: wavng}]"], "expected a named pose, found 'wavng'; did you mean 'waving'?"),
        (["draw", "waving"], "expected a pose file or people such as '[{person: waving}]', found 'waving'"),
        (["draw", "[{person: waving}]", "--size", "big"], "--size: expected WIDTHxHEIGHT in pixels"),
        (["draw", "[{person: waving}]", "--output", "a.jpg"], "--output: expected a .png or .json file"),
        (["draw", "nowhere.json"], "nowhere.json"),
        (["draw", "{image: a.png}"], "expected a pose with json or people, which can be drawn"),
        (["detect", "nowhere.jpg"], "nowhere.jpg: no such picture"),
        (["show", "--body", "giant"], "--body: expected adult, child, puppet, found 'giant'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["pose", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())
