"""Poses of scenes and the boxes that follow from them, from options to regions; no model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixshow.config.load import build, load
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.recipes.pose import with_photo_read
from mixshow.recipes.scene import read_scene
from mixshow.sampling.named_poses import named_person
from mixshow.sampling.openpose import openpose_json
from mixshow.sampling.people_boxes import PEOPLE_MARGINS, PUPPET_MARGINS, boxes_around
from mixshow.sampling.pose import draw_openpose
from mixshow.sampling.regions import PixelBox
from mixshow.sampling.scene import Scene
from mixshow.sampling.skeleton import ADULT, PUPPET

SIZE = (256, 128)
LIST = [
    {"person": "waving", "at": [0.2, 0.9], "height": 0.8, "name": "pip"},
    {"person": "sitting", "at": [0.7, 0.95], "mirror": True, "name": "luma"},
]
BOXES = {"boxes": "from_pose"}
PEOPLE = [
    named_person("waving", (0.2 * 256, 0.9 * 128), 0.8 * 128, body=PUPPET),
    named_person("sitting", (0.7 * 256, 0.95 * 128), 0.8 * 128, body=PUPPET, mirror=True),
]


def scene_options(pose: Any, regions: Any = (), **other: Any) -> SceneOptions:
    contents = {"prompt": "two", "output": "a.png", "size": list(SIZE), "pose": pose, "regions": list(regions), **other}
    return build(SceneOptions, contents)


def read(pose: Any, regions: Any = (), **other: Any) -> tuple[Scene, SceneOptions]:
    problems: list[str] = []
    found = read_scene(scene_options(pose, regions, **other), problems)
    assert not problems, problems
    return found


def boxes_of(scene: Scene) -> list[tuple[int, ...]]:
    assert all(isinstance(region.area, PixelBox) for region in scene.regions)
    return [tuple(region.area.numbers) for region in scene.regions]  # type: ignore[union-attr]


def test_a_list_of_named_poses_is_the_pose() -> None:
    expected = np.asarray(draw_openpose(PEOPLE, SIZE))
    for pose in (LIST, {"people": LIST, "weight": 0.5}):
        scene, options = read(pose)
        assert scene.pose is not None
        np.testing.assert_array_equal(np.asarray(scene.pose.picture), expected)
    assert scene.pose.weight == 0.5
    again, _ = read({"people": options.pose.people})  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.asarray(again.pose.picture), expected)  # type: ignore[union-attr]


def test_bodies_follow_the_adapter_and_people_without_a_place_stand_side_by_side() -> None:
    scene, _ = read({"people": [{"person": "standing"}, {"person": "standing"}], "adapter": "someone/elses"})
    people = [named_person("standing", (x * 256, 0.95 * 128), 0.8 * 128, body=ADULT) for x in (0.25, 0.75)]
    assert scene.pose is not None
    np.testing.assert_array_equal(np.asarray(scene.pose.picture), np.asarray(draw_openpose(people, SIZE)))


def test_named_poses_stand_beside_given_points() -> None:
    points = [[0.5 + 0.01 * i, 0.2 + 0.03 * i] for i in range(18)]
    scene, options = read([LIST[0], points, {"points": points, "name": "x"}])
    assert scene.pose is not None and options.pose is not None and options.pose.people is not None
    np.testing.assert_allclose(np.array(options.pose.people[1])[:, :2], np.array(points) * SIZE)
    assert options.pose.people[1] == options.pose.people[2]


def test_boxes_follow_names_and_order() -> None:
    boxes = boxes_around(PEOPLE, SIZE, PUPPET_MARGINS)
    two = [{"prompt": "a"}, {"prompt": "b"}]
    scene, options = read(LIST, two, boxes="from_pose")
    assert boxes_of(scene) == boxes
    assert options.boxes is None and options.edges == "soft"
    problems: list[str] = []
    assert boxes_of(read_scene(options, problems)[0]) == boxes and not problems  # what a picture carries
    by_concept = [{"prompt": "{concept}", "concept": name} for name in ("luma", "pip")]
    assert boxes_of(read(LIST, by_concept, boxes="from_pose")[0]) == boxes[::-1]
    by_name = [{"prompt": "a"}, {"prompt": "b", "person": "pip"}]
    assert boxes_of(read(LIST, by_name, boxes="from_pose")[0]) == boxes[::-1]
    one = [{"prompt": "a", "box": [0, 0, 9, 9]}, {"prompt": "b", "person": 2}]
    assert boxes_of(read(LIST, one, edges="hard")[0]) == [(0, 0, 9, 9), boxes[1]]
    wider = read({"people": LIST, "margins": [0.3, 0.3, 0.3]}, two, boxes="from_pose")
    assert boxes_of(wider[0]) == boxes_around(PEOPLE, SIZE, PUPPET_MARGINS._replace(sides=0.3, above=0.3, below=0.3))


def test_boxes_of_people_in_files(tmp_path: Path) -> None:
    people = [named_person("standing", (x, 500), 450) for x in (200, 600, 900)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps([openpose_json(people, (1024, 512))]))
    pose = {"json": str(path), "adapter": "someone/elses"}
    scene, _ = read(pose, [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}], boxes="from_pose")
    expected = boxes_around([person * (0.25, 0.25, 1) for person in people], SIZE, PEOPLE_MARGINS)
    np.testing.assert_allclose(boxes_of(scene), expected, atol=1)


def test_more_people_than_regions_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "mixshow"):
        scene, _ = read(LIST, [{"prompt": "a"}], boxes="from_pose")
    assert "pose: 2 people for 1 regions" in caplog.text
    assert boxes_of(scene) == boxes_around(PEOPLE, SIZE)[:1]


@pytest.mark.parametrize(
    ("pose", "regions", "other", "message"),
    [
        ([{"person": "wavng"}], [], {}, "pose: people[0].person: expected a named pose, found 'wavng'; did you mean"),
        ([{"person": "waving", "points": []}], [], {}, "pose.people[0].person: expected a named pose, or key points"),
        ([{"at": [0.1, 0.1]}], [], {}, "pose.people[0].person: expected a named pose, or key points"),
        ([{"person": "waving", "at": [120, 90]}], [], {}, "at: expected fractions of the picture such as [0.2, 0.9]"),
        ([{"person": "waving", "height": 0}], [], {}, "height: expected a fraction"),
        ([{"person": "waving", "hight": 1}], [], {}, "pose.people[0].hight: unknown option; did you mean 'height'?"),
        ([LIST[0], LIST[0]], [], {}, "pose: people: expected different names, found 'pip' twice"),
        ([{"person": "waving", "at": [-1.5, 0.5]}], [], {}, "inside the picture of 256x128 pixels, found none"),
        ([], [], {}, "pose.people: expected at least one person"),
        ("waving", [], {}, "pose: expected a mapping, found a text"),
        (LIST, [{"prompt": "a"}] * 3, BOXES, "a person for each of 3 regions, found 2 in the pose"),
        (LIST, [{"prompt": "a"}, {"prompt": "b", "person": "pop"}], BOXES, "no 'pop'; did you mean 'pip'"),
        (LIST, [{"prompt": "a", "person": 3}], {}, "regions[0].person: expected one of the pose's 2 people, found 3"),
        (LIST, [{"prompt": "a", "person": 0}], {}, "regions[0].person: expected 1 (the first) or more"),
        (LIST, [{"prompt": "a", "person": 1, "box": [0, 0, 1, 1]}], {}, "one shape, found box and person"),
        (LIST, [], BOXES, "boxes: expected regions"),
        (LIST, [{"prompt": "a"}], BOXES | {"layout": "1"}, "boxes: expected no boxes from the pose beside"),
        (None, [{"prompt": "a"}], BOXES, "boxes: expected a pose with key points (people, json or photo)"),
        ({"png": "AA"}, [{"prompt": "a", "person": 1}], {}, "regions[0].person: expected a pose with key points"),
        ({"photo": "nowhere.jpg"}, [], {}, "pose.photo: nowhere.jpg: no such picture"),
        (LIST, [{"prompt": "a"}], {}, "or boxes: from_pose for all regions; found none"),
    ],
)  # fmt: skip
def test_bad_input(pose: Any, regions: Any, other: dict[str, Any], message: str) -> None:
    problems: list[str] = []
    try:
        read_scene(scene_options(pose, regions, **other), problems)
    except OptionsError as error:
        problems += error.problems
    assert any(message in problem for problem in problems), problems


def test_people_of_a_photograph(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (512, 256)).save(photo)
    regions = [{"prompt": "a"}, {"prompt": "b"}]
    pose = {"photo": str(photo), "detector": "dwpose", "weight": 0.7}
    scene, options = read(pose, regions, boxes="from_pose")  # all else is checked before anybody is looked for
    assert scene.pose is None and len(scene.regions) == 2
    found = [person / (*SIZE, 1) for person in PEOPLE]
    options = with_photo_read(scene_options(pose, regions, boxes="from_pose"), lambda _: found[::-1])
    problems: list[str] = []
    scene, options = read_scene(options, problems)
    assert not problems
    assert boxes_of(scene) == boxes_around(PEOPLE, SIZE)
    assert scene.pose is not None and scene.pose.weight == 0.7
    np.testing.assert_array_equal(np.asarray(scene.pose.picture), np.asarray(draw_openpose(PEOPLE, SIZE)))
    assert options.pose is not None and options.pose.photo is None
    with pytest.raises(MixshowError, match=r"pose: .*photo\.jpg: expected at least one person in the photograph"):
        with_photo_read(scene_options(pose), lambda _: [])


def test_who_lies_under_whom_is_asked_of_boxes_that_are_known(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (512, 256)).save(photo)
    person, backdrop = {"prompt": "a", "person": 1, "priority": 1}, {"prompt": "b", "box": [0, 0, 1, 1]}
    read({"photo": str(photo)}, [person, backdrop])  # one person's box is all of the picture as long as nobody is found
    found = with_photo_read(
        scene_options({"photo": str(photo)}, [person, backdrop]), lambda _: [PEOPLE[0] / (*SIZE, 1)]
    )
    problems: list[str] = []
    assert len(read_scene(found, problems)[0].regions) == 2 and not problems
    small = {"prompt": "c", "box": [100, 50, 110, 60], "priority": -1}  # under the backdrop, whoever is found
    read_scene(scene_options({"photo": str(photo)}, [person, backdrop, small]), problems)
    assert problems == ["regions[2]: lies wholly under regions of higher priority; expected a part of it to be seen"]
    x, y = PEOPLE[0][:, 0].mean(), PEOPLE[0][:, 1].mean()
    small = {"prompt": "c", "box": [int(x), int(y), int(x) + 4, int(y) + 4]}
    found = with_photo_read(scene_options({"photo": str(photo)}, [person, small]), lambda _: [PEOPLE[0] / (*SIZE, 1)])
    problems.clear()
    read_scene(found, problems)
    assert len(problems) == 1 and problems[0].startswith("regions[1]: lies wholly under")


def test_the_shipped_scene_of_named_poses() -> None:
    path = Path(__file__).resolve().parents[2] / "options" / "compose" / "named_poses.yml"
    problems: list[str] = []
    scene, _ = read_scene(load(SceneOptions, path), problems)
    assert not problems
    rusty, pip, luma = boxes_of(scene)  # as the file lists the regions
    assert pip[2] <= luma[0] + 1 and luma[2] <= rusty[0] + 1
