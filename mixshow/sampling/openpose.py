"""Reading people from OpenPose's JSON, as OpenPose and the editors of other programs write it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_json
from mixshow.core.progress import log
from mixshow.sampling.joints import POINTS, coco_of

METADATA_KEY = "openpose"
Size = tuple[int, int]
_PEOPLE_IN = ("people", "candidate", "keypoints")  # where the forms that are understood have them


def read_people(path: Path | str, canvas: int | None = None) -> tuple[list[np.ndarray], Size | None]:
    """Read the people of an OpenPose JSON file, or of a pose picture that carries them in its metadata.

    Understood are OpenPose's own `{"people": [{"pose_keypoints_2d": [x, y, confidence, ...]}]}` with 18, 25 (BODY_25)
    or 135 (BODY_135) key points, with or without `canvas_width` and `canvas_height`; lists of such canvases, as
    ControlNet's preprocessors write them; and pose editors' `{"candidate": ..., "subset": ...}` and `{"width",
    "height", "keypoints": [[x, y], ...]}`. Faces and hands are left out: pose pictures for adapters show bodies.

    Args:
        canvas: which of several canvases, from 0; None: the first.

    Returns:
        One (18, 3) array per person (x, y, confidence; 0 where not seen), and the size (width, height) they are in,
        or None when the file does not say. Coordinates of which none is above 1 are fractions: of the canvas when
        its size is told, otherwise the size is (1, 1).

    Raises:
        MixshowError: missing, of another form, or without people.
    """
    path = Path(path)
    contents, size = _read(path)
    contents = _canvas(contents, canvas, path)
    try:
        people = _people_of(contents)
        size = _canvas_size(contents) or size
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise MixshowError(
            f"{path}: expected for each person 'pose_keypoints_2d' with 18, 25 or 135 times x, y, confidence ({error})"
        ) from error
    people = [person for person in people if (person[:, 2] > 0).any()]
    if not people:
        raise MixshowError(f"{path}: expected at least one person with visible key points, found none")
    if max(float(person[person[:, 2] > 0, :2].max()) for person in people) > 1:
        return people, size
    if size is None:
        return people, (1, 1)
    return [person * (*size, 1) for person in people], size


def openpose_json(people: Sequence[np.ndarray], size: Size) -> dict[str, Any]:
    """People in pixels of a canvas as OpenPose's JSON of 18 key points, which `read_people` reads.

    Args:
        people: (18, 3) arrays; points that are not visible are written as zeros.
    """
    return {
        "version": 1.3,
        "canvas_width": size[0],
        "canvas_height": size[1],
        "people": [
            {"pose_keypoints_2d": np.where(person[:, 2:] > 0, person, 0).round(3).flatten().tolist()}
            for person in people
        ],
    }


def person_of(points: Sequence[Sequence[float] | None]) -> np.ndarray:
    """A (18, 3) array of 18 points `[x, y]` or `[x, y, confidence]`; None or an empty one: not visible.

    Raises:
        ValueError: another number of points or values.
    """
    if len(points) != POINTS:
        raise ValueError(f"expected {POINTS} key points, found {len(points)}")
    person = np.zeros((POINTS, 3))
    for i, point in enumerate(points):
        if point:
            if len(point) not in (2, 3):
                raise ValueError(f"key point {i}: expected x, y and perhaps confidence, found {len(point)} values")
            person[i] = (*point[:2], point[2] if len(point) == 3 else 1.0)
    if not np.isfinite(person).all():
        raise ValueError("expected numbers, found infinite ones or none")
    return person


def fit_people(people: Sequence[np.ndarray], size: Size | None, target: Size) -> list[np.ndarray]:
    """Scale people from a canvas of `size` into one of `target`, keeping proportions, centred; None: as they are.

    Fractions, a size of (1, 1), are of each side.
    """
    if size in (None, target):
        return [person.copy() for person in people]
    assert size is not None
    factors = np.array([target[0] / size[0], target[1] / size[1]])
    if size != (1, 1):
        factors[:] = factors.min()
    offset = (np.array(target) - factors * np.array(size)) / 2
    return [np.concatenate([person[:, :2] * factors + offset, person[:, 2:]], axis=1) for person in people]


def anyone_inside(people: Sequence[np.ndarray], size: Size) -> bool:
    """Whether any visible key point lies in a picture of `size`."""
    inside = [(person[:, 2] > 0) & (person[:, :2] >= 0).all(1) & (person[:, :2] < size).all(1) for person in people]
    return any(points.any() for points in inside)


def fit_picture(picture: Image.Image, target: Size) -> Image.Image:
    """A pose picture scaled into `target`, keeping proportions, centred on black."""
    picture = picture.convert("RGB")
    return picture if picture.size == target else ImageOps.pad(picture, target, Image.Resampling.BILINEAR)


def read_picture(path: Path | str | BinaryIO) -> Image.Image:
    """Read a picture whole.

    Raises:
        MixshowError: missing, truncated, or no picture.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except FileNotFoundError as error:
        raise MixshowError(f"{path}: no such picture") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MixshowError(f"{path}: expected a picture, found something else or a truncated one ({error})") from error


def _read(path: Path) -> tuple[Any, Size | None]:
    """What a file says, and the size of the picture that says it."""
    if path.suffix.lower() != ".png":
        return read_json(path), None
    picture = read_picture(path)
    if METADATA_KEY not in picture.info:
        raise MixshowError(f"{path}: expected key points in the picture's metadata ('{METADATA_KEY}'), found none")
    try:
        return json.loads(picture.info[METADATA_KEY]), picture.size
    except (json.JSONDecodeError, TypeError) as error:
        raise MixshowError(f"{path}: its '{METADATA_KEY}' metadata is not valid JSON ({error})") from error


def _canvas(contents: Any, number: int | None, path: Path) -> Mapping[str, Any]:
    """One canvas of a list of them."""
    listed = contents if isinstance(contents, list) else [contents]
    if not listed or not all(isinstance(one, Mapping) and any(key in one for key in _PEOPLE_IN) for one in listed):
        raise MixshowError(f"{path}: expected OpenPose JSON with 'people', found none")
    if number is not None and number >= len(listed):
        raise MixshowError(f"{path}: expected one of its {len(listed)} canvases from 0 on, found number {number}")
    if number is None and len(listed) > 1:
        log.info("%s: the first of its %d canvases; 'canvas: 1' would be the second", path, len(listed))
    canvas: Mapping[str, Any] = listed[number or 0]
    return canvas


def _canvas_size(canvas: Mapping[str, Any]) -> Size | None:
    names = ("width", "height") if "keypoints" in canvas else ("canvas_width", "canvas_height")
    width, height = (canvas.get(name) for name in names)
    return (int(width), int(height)) if width and height else None


def _people_of(canvas: Mapping[str, Any]) -> list[np.ndarray]:
    if "candidate" in canvas:
        return _from_candidates(canvas)
    if "keypoints" in canvas:
        points = canvas["keypoints"]
        if len(points) % POINTS:
            raise ValueError(f"found {len(points)} key points, no multiple of {POINTS}")
        return [person_of(points[i : i + POINTS]) for i in range(0, len(points), POINTS)]
    return [_from_numbers(entry["pose_keypoints_2d"]) for entry in canvas["people"] or ()]


def _from_numbers(numbers: Sequence[float | None] | None) -> np.ndarray:
    """A person of OpenPose's flat list; none at all where only a face or a hand was found."""
    if not numbers:
        return np.zeros((POINTS, 3))
    values = np.array([0 if value is None else value for value in numbers], dtype=np.float64)
    if values.size % 3:
        raise ValueError(f"found {values.size} values")
    if not np.isfinite(values).all():
        raise ValueError("found infinite values")
    return coco_of(values.reshape(-1, 3))


def _from_candidates(canvas: Mapping[str, Any]) -> list[np.ndarray]:
    """Candidates are points or null; each row of the subset names the 18 of one person, -1 for missing ones."""
    candidates = canvas["candidate"]
    return [
        person_of([candidates[int(i)][:2] if i >= 0 and candidates[int(i)] else None for i in row[:POINTS]])
        for row in canvas["subset"]
    ]
