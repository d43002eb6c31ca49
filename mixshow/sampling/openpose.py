"""Reading people from OpenPose's JSON (COCO-18 and BODY-25) and fitting them into a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_json

POINTS = 18
# Where COCO-18's key points stand in BODY-25, which has the middle of the hips at 8 and the feet from 19 on.
_OF_BODY_25 = (*range(8), *range(9, 19))
Size = tuple[int, int]


def read_people(path: Path | str) -> tuple[list[np.ndarray], Size | None]:
    """Read the people of an OpenPose JSON file, or of a pose picture that carries them in its metadata.

    Understood are OpenPose's own `{"people": [{"pose_keypoints_2d": [x, y, confidence, ...]}]}` with 18 or 25 key
    points, with or without `canvas_width` and `canvas_height`, and the `{"candidate": ..., "subset": ...}` of pose
    editors.

    Returns:
        One (18, 3) array per person (x, y, confidence; 0 where not seen), and the size (width, height) they are in,
        or None when the file does not say. Coordinates of which none is above 1 are fractions: then it is (1, 1).

    Raises:
        MixshowError: missing, of another form, or without people.
    """
    path = Path(path)
    size: Size | None
    if path.suffix.lower() == ".png":
        picture = read_picture(path)
        if "openpose" not in picture.info:
            raise MixshowError(f"{path}: expected key points in the picture's metadata ('openpose'), found none")
        size = picture.size
        try:
            contents = json.loads(picture.info["openpose"])
        except (json.JSONDecodeError, TypeError) as error:
            raise MixshowError(f"{path}: its 'openpose' metadata is not valid JSON ({error})") from error
    else:
        contents = read_json(path)
        size = None
    if isinstance(contents, list) and len(contents) == 1:  # some editors wrap the document in a list
        contents = contents[0]
    if not isinstance(contents, dict) or not ("people" in contents or "candidate" in contents):
        raise MixshowError(f"{path}: expected OpenPose JSON with 'people', found none")
    try:
        people = _from_candidates(contents) if "candidate" in contents else _from_people(contents)
        if contents.get("canvas_width") and contents.get("canvas_height"):
            size = (int(contents["canvas_width"]), int(contents["canvas_height"]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise MixshowError(
            f"{path}: expected for each person 'pose_keypoints_2d' with 18 or 25 times x, y, confidence ({error})"
        ) from error
    people = [person for person in people if (person[:, 2] > 0).any()]
    if not people:
        raise MixshowError(f"{path}: expected at least one person with visible key points, found none")
    if max(float(person[:, :2].max()) for person in people) <= 1:
        size = (1, 1)
    return people, size


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


def _from_people(contents: dict[str, Any]) -> list[np.ndarray]:
    people = []
    for entry in contents["people"]:
        values = np.array([0 if value is None else value for value in entry["pose_keypoints_2d"]], dtype=np.float64)
        if values.size not in (3 * POINTS, 75):
            raise ValueError(f"found {values.size} values")
        if not np.isfinite(values).all():
            raise ValueError("found infinite values")
        points = values.reshape(-1, 3)
        people.append(points if len(points) == POINTS else points[list(_OF_BODY_25)])
    return people


def _from_candidates(contents: dict[str, Any]) -> list[np.ndarray]:
    """Candidates are points or null; each row of the subset names the 18 of one person, -1 for missing ones."""
    candidates = contents["candidate"]
    return [
        person_of([candidates[int(i)][:2] if i >= 0 and candidates[int(i)] else None for i in row[:POINTS]])
        for row in contents["subset"]
    ]
