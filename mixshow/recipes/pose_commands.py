"""What `mixshow pose` does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mixshow.config.load import build, read_yaml
from mixshow.config.pose import PoseOptions
from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.core.files import write_json
from mixshow.core.progress import log
from mixshow.models.device import device_named
from mixshow.recipes.outputs import check_output
from mixshow.recipes.pose import people_in
from mixshow.sampling.detect import Detector, find_people, load_detector
from mixshow.sampling.joints import JOINTS
from mixshow.sampling.named_poses import POSES, named_person
from mixshow.sampling.openpose import METADATA_KEY, anyone_inside, fit_people, openpose_json, read_people, read_picture
from mixshow.sampling.people_boxes import PEOPLE_MARGINS, boxes_around
from mixshow.sampling.pictures import picture_grid, save_picture
from mixshow.sampling.pose import draw_openpose
from mixshow.sampling.skeleton import BODIES

Size = tuple[int, int]
_DEFAULT_SIZE = (512, 512)
_FILES, _SCENES = (".json", ".png"), (".yml", ".yaml")
_CELL, _COLUMNS = (128, 160), 5  # of the sheet


def draw(pose: str, output: Path, size: str | None = None) -> None:
    """Draw people, or write them as JSON.

    Args:
        pose: a pose file, a scene's options file, or people as YAML, as `pose` of a scene has them.
        output: `.png`, which carries the key points too, or `.json`.
        size: `WIDTHxHEIGHT` in pixels; None: the file's or the scene's own.

    Raises:
        MixshowError: what cannot be read, or nobody inside of the picture.
    """
    wanted = None if size is None else _parsed_size(size)
    suffix = Path(pose).suffix.lower()
    if suffix in (*_FILES, *_SCENES):
        check_output(output, {pose: Path(pose)})
    if suffix in _FILES:
        people, own = read_people(pose)
        target = wanted or (own if own not in (None, (1, 1)) else _DEFAULT_SIZE) or _DEFAULT_SIZE
        people = fit_people(people, own, target)
    else:
        contents, own = _scene(Path(pose)) if suffix in _SCENES else (_parsed_people(pose), None)
        options = build(PoseOptions, contents, pose)
        if options.photo is not None or not options.has_points:
            raise MixshowError(f"{pose}: expected a pose with json or people, which can be drawn")
        if options.json is not None:
            check_output(output, {"pose.json": options.json})
        target = wanted or own or _DEFAULT_SIZE
        people, _ = people_in(options, target)
    _write(people, target, output, pose)


def detect(
    photo: Path,
    output: Path,
    *,
    detector: str = "openpose",
    model: str | None = None,
    device: str = "auto",
    find: Detector | None = None,
) -> None:
    """Find people in a photograph and write them as OpenPose JSON, or draw them.

    Args:
        find: instead of loading the detector.

    Raises:
        MixshowError: no photograph, the extra or its weights are missing, or nobody is in the photograph.
    """
    check_output(output, {str(photo): photo})
    picture = read_picture(photo)
    find = find or load_detector(detector, model, device_named(device))
    try:
        people = find_people(picture, find)
    except MixshowError as error:
        raise MixshowError(f"{photo}: {error}") from error
    _write(people, picture.size, output, str(photo))


def sheet(output: Path, body: str) -> None:
    """Draw all named poses on one sheet, with their names.

    Raises:
        MixshowError: no body of that name.
    """
    if body not in BODIES:
        raise MixshowError(f"--body: expected {', '.join(BODIES)}, found '{body}'{did_you_mean(body, BODIES)}")
    width, height = _CELL
    place, tall = (width / 2, 0.94 * height), 0.76 * height
    drawn = [draw_openpose([named_person(name, place, tall, body=BODIES[body])], _CELL) for name in POSES]
    save_picture(picture_grid(drawn, _COLUMNS, list(POSES)), output)
    log.info("%s: %s", output, ", ".join(POSES))


def description(path: Path) -> str:
    """Who is in a pose file: visible points, and boxes as `boxes: from_pose` makes them.

    Raises:
        MixshowError: not to be read as a pose.
    """
    people, size = read_people(path)
    if size == (1, 1):
        people, size, unit = fit_people(people, size, _DEFAULT_SIZE), _DEFAULT_SIZE, "fractions"
    else:
        unit = "pixels" if size else "pixels of a canvas whose size is not told"
        size = size or _extent(people)
    lines = [f"{path}: {len(people)} people in {unit}, canvas {size[0]}x{size[1]}"]
    boxes: Sequence[Any]
    try:
        boxes = boxes_around(people, size, PEOPLE_MARGINS)
    except MixshowError as error:
        boxes = [error] * len(people)
    for i, (person, box) in enumerate(zip(people, boxes, strict=True)):
        hidden = [name for name, point in zip(JOINTS, person, strict=True) if point[2] <= 0]
        seen = f"{len(JOINTS) - len(hidden)} of {len(JOINTS)} points"
        missing = f" (not {', '.join(hidden)})" if hidden else ""
        lines.append(f"person {i + 1}: {seen}{missing}; box {list(box) if isinstance(box, tuple) else f'none: {box}'}")
    return "\n".join(lines)


def _extent(people: Sequence[np.ndarray]) -> Size:
    right, bottom = np.ceil(np.concatenate([person[person[:, 2] > 0, :2] for person in people]).max(0))
    return max(1, int(right)), max(1, int(bottom))


def _write(people: Sequence[np.ndarray], size: Size, output: Path, source: str) -> None:
    if not anyone_inside(people, size):
        raise MixshowError(f"{source}: expected somebody inside the picture of {size[0]}x{size[1]} pixels, found none")
    contents = openpose_json(people, size)
    if output.suffix.lower() == ".json":
        write_json(output, contents)
    elif output.suffix.lower() == ".png":
        save_picture(draw_openpose(people, size), output, contents, key=METADATA_KEY)
    else:
        raise MixshowError(f"--output: expected a .png or .json file, found '{output}'")
    log.info("%s: %d people, %dx%d", output, len(people), *size)


def _parsed_size(text: str) -> Size:
    found = re.fullmatch(r"(\d+)\s*x\s*(\d+)", text.strip().lower())
    if not found or not all(int(side) for side in found.groups()):
        raise MixshowError(f"--size: expected WIDTHxHEIGHT in pixels such as 512x768, found '{text}'")
    return int(found[1]), int(found[2])


def _parsed_people(text: str) -> Any:
    try:
        people = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MixshowError(f"expected a pose file or people such as '[{{person: waving}}]', found '{text}'") from error
    if not isinstance(people, (list, dict)):
        raise MixshowError(f"expected a pose file or people such as '[{{person: waving}}]', found '{text}'")
    return people


def _scene(path: Path) -> tuple[Any, Size | None]:
    """The pose and the size of a scene's options file, or of a file with a pose alone."""
    contents = read_yaml(path)
    size = contents.get("size")
    if size is None:
        return contents.get("pose", contents), None
    whole = isinstance(size, list) and all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    if not whole or len(size) != 2 or min(size) <= 0:
        raise MixshowError(f"{path}: size: expected [width, height] in pixels, found {size}")
    return contents.get("pose", contents), (size[0], size[1])
