from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixshow.core.errors import MixshowError
from mixshow.sampling.joints import INDEX
from mixshow.sampling.openpose import anyone_inside, fit_people, fit_picture, openpose_json, read_people
from mixshow.sampling.pose import draw_openpose


def flat(points: np.ndarray) -> list[float]:
    return [float(value) for value in points.flatten()]


def person(count: int, scale: float = 1.0) -> np.ndarray:
    points = np.arange(count * 3, dtype=float).reshape(count, 3) * scale
    points[:, 2] = 1
    return points


def write(path: Path, contents: object) -> Path:
    path.write_text(json.dumps(contents))
    return path


def test_coco_and_body_25_name_the_same_joints(tmp_path: Path) -> None:
    body = person(25)
    coco = body[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18]]
    people = [{"pose_keypoints_2d": flat(coco)}, {"pose_keypoints_2d": flat(body)}]
    found, size = read_people(write(tmp_path / "a.json", {"people": people, "canvas_width": 512, "canvas_height": 256}))
    assert size == (512, 256)
    np.testing.assert_array_equal(found[0], found[1])


def test_body_135_names_them_otherwise(tmp_path: Path) -> None:
    body = np.zeros((135, 3))
    # The order of OpenPose's poseParameters.cpp: left before right, faces and hands from 25 on.
    order = ["nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"]
    order += ["left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"]
    order += ["left_knee", "right_knee", "left_ankle", "right_ankle"]
    for i, name in enumerate(order):
        body[i] = (10 + INDEX[name], 50 + 2 * INDEX[name], 0.9)
    body[[5, 6], 2] = (0.4, 0.8)
    body[17:] = (300, 300, 1)
    [found], size = read_people(write(tmp_path / "a.json", {"people": [{"pose_keypoints_2d": flat(body)}]}))
    assert size is None
    for name in order:
        assert found[INDEX[name], :2].tolist() == [10 + INDEX[name], 50 + 2 * INDEX[name]]
    np.testing.assert_allclose(found[INDEX["neck"]], [10 + 3.5, 50 + 7, 0.4])  # between the shoulders 2 and 5


def test_lists_of_canvases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = person(18) + [0, 1, 0]
    canvas = {"canvas_width": 200, "canvas_height": 100, "animals": []}
    face = {"pose_keypoints_2d": None, "face_keypoints_2d": [1.0] * 210}  # of a person without a body
    shares = pixels / [200, 100, 1]
    path = write(
        tmp_path / "a.json",
        [
            canvas | {"people": [{"pose_keypoints_2d": flat(pixels)}, face]},
            canvas | {"people": [{"pose_keypoints_2d": flat(shares)}]},
            canvas | {"people": None},
        ],
    )
    with caplog.at_level("INFO", "mixshow"):
        [first], size = read_people(path)
    assert "the first of its 3 canvases" in caplog.text
    [second], same_size = read_people(path, 1)
    assert size == same_size == (200, 100)
    np.testing.assert_allclose(first, second)  # fractions are of the canvas, whose proportions are kept
    with pytest.raises(MixshowError, match="at least one person"):
        read_people(path, 2)
    with pytest.raises(MixshowError, match=r"one of its 3 canvases from 0 on, found number 3"):
        read_people(path, 3)


def test_files_of_editors(tmp_path: Path) -> None:
    points = np.arange(72).reshape(36, 2)
    written = {"width": 512, "height": 768, "keypoints": points.tolist()}
    people, size = read_people(write(tmp_path / "a.json", written))
    assert size == (512, 768)
    np.testing.assert_array_equal(np.concatenate(people)[:, :2], points)
    with pytest.raises(MixshowError, match="no multiple of 18"):
        read_people(write(tmp_path / "a.json", written | {"keypoints": points[:20].tolist()}))


def test_people_are_written_as_they_are_read(tmp_path: Path) -> None:
    people = [person(18), person(18, 2.0)]
    people[1][:, 2] = 1
    people[1][3] = (5, 6, 0)
    found, size = read_people(write(tmp_path / "a.json", openpose_json(people, (300, 200))))
    assert size == (300, 200)
    people[1][3] = 0
    np.testing.assert_array_equal(found, people)


def test_people_are_fitted_to_the_canvas(tmp_path: Path) -> None:
    [fitted] = fit_people([np.array([[100.0, 200.0, 1.0]])], (200, 400), (256, 128))
    np.testing.assert_allclose(fitted, [[128 + (100 - 100) * 0.32, 64, 1]])
    fractions = person(18, 1 / 60)
    [found], size = read_people(write(tmp_path / "a.json", {"people": [{"pose_keypoints_2d": flat(fractions)}]}))
    assert size == (1, 1)
    [scaled] = fit_people([found], size, (256, 128))
    np.testing.assert_allclose(scaled[:, :2], fractions[:, :2] * [256, 128])


def test_pose_pictures_keep_their_proportions() -> None:
    picture = Image.new("RGB", (100, 100), "white")
    fitted = fit_picture(picture, (256, 128))
    assert fitted.size == (256, 128)
    assert fitted.getbbox() == (64, 0, 192, 128)


@pytest.mark.parametrize(
    "contents",
    [
        {"people": []},
        {"people": [{"pose_keypoints_2d": [0.0] * 54}]},
        {"people": [{"pose_keypoints_2d": [1.0] * 10}]},
        {"people": [{}]},
        {"skeletons": []},
        [1, 2],
    ],
)
def test_files_without_people_are_explained(tmp_path: Path, contents: object) -> None:
    with pytest.raises(MixshowError, match=r"a\.json: expected"):
        read_people(write(tmp_path / "a.json", contents))


def test_people_outside_the_picture_do_not_count() -> None:
    assert anyone_inside([person(18)], (10, 10))
    assert not anyone_inside([person(18) + [500, 0, 0]], (256, 128))
    hidden = person(18)
    hidden[:, 2] = 0
    assert not anyone_inside([hidden], (256, 128))


def test_key_points_in_a_picture_s_metadata_redraw_it(shared_fixtures: Path) -> None:
    path = shared_fixtures / "layouts" / "hina_tezuka_mitsuha_goku_kaori.png"
    people, size = read_people(path)
    assert len(people) == 5
    assert size is not None
    drawn = np.asarray(draw_openpose(people, size)).any(-1)
    published = np.asarray(Image.open(path).convert("RGB")).any(-1)
    thin = np.asarray(Image.fromarray(published).resize((size[0] // 8, size[1] // 8), Image.Resampling.BOX))
    ours = np.asarray(Image.fromarray(drawn).resize((size[0] // 8, size[1] // 8), Image.Resampling.BOX))
    assert (thin & ours).sum() >= 0.8 * ours.sum()
