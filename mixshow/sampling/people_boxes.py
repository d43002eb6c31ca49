"""A box around each skeleton of a picture, with room for what key points do not show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from mixshow.core.errors import MixshowError
from mixshow.sampling.joints import INDEX

Size = tuple[int, int]
Box = tuple[int, int, int, int]

_APART = 0.25  # of the smaller one's height: people whose necks are closer stand before each other, not beside
_ANKLES = [INDEX["right_ankle"], INDEX["left_ankle"]]
# Where key points of somebody upright are, as parts of the way from the eyes to the ankles: what is seen of a person
# tells how much is not.
_LEVELS = {"nose": 0.02, "neck": 0.11, "right_hip": 0.44, "left_hip": 0.44, "right_knee": 0.72, "left_knee": 0.72}


class Margins(NamedTuple):
    """Room around a skeleton, in parts of its height."""

    sides: float
    above: float
    below: float


# Measured on the built-in base: wings and capes are wider than the key points of hands and feet, and above the nose
# there are hair and hats (docs/log.md).
PUPPET_MARGINS = Margins(0.17, 0.42, 0.08)
# People's heads are smaller.
PEOPLE_MARGINS = Margins(0.17, 0.2, 0.08)


def boxes_around(people: Sequence[np.ndarray], size: Size, margins: Margins = PUPPET_MARGINS) -> list[Box]:
    """A box around each skeleton; beside each other, neighbours' end half-way between their necks.

    People who are too close for that overlap. Somebody whose ankles are not seen is taken to go on below.

    Args:
        people: `(18, 3)` key points in pixels, and above 0 where visible, in any order.
        size: (width, height) of the picture.

    Returns:
        `(left, top, right, bottom)` in pixels inside the picture, in the order of the people.

    Raises:
        MixshowError: somebody is outside of the picture, or has too few key points.
    """
    wide = [_box_around(points, margins, i + 1) for i, points in enumerate(people)]
    boxes = [box.copy() for box in wide]
    for first, second in combinations(sorted(range(len(people)), key=lambda i: _middle(people[i])), 2):
        border = (_middle(people[first]) + _middle(people[second])) / 2
        level = wide[first][1] < wide[second][3] and wide[second][1] < wide[first][3]
        if level and 2 * (border - _middle(people[first])) >= _APART * min(_height(people[i]) for i in (first, second)):
            boxes[first][2] = min(boxes[first][2], border)
            boxes[second][0] = max(boxes[second][0], border)
    return [_inside(box, size, i + 1) for i, box in enumerate(boxes)]


def _box_around(points: np.ndarray, margins: Margins, number: int) -> np.ndarray:
    seen = points[points[:, 2] > 0]
    if len(seen) < 2 or not np.ptp(seen[:, 1]) > 0:
        raise MixshowError(
            f"person {number}: expected at least two visible key points at different heights, found {len(seen)} visible"
        )
    (left, top), right = seen[:, :2].min(0), seen[:, 0].max()
    height = _height(points)
    bottom = top + height
    return np.array(
        [
            left - margins.sides * height,
            top - margins.above * height,
            right + margins.sides * height,
            bottom + margins.below * height,
        ]
    )


def _height(points: np.ndarray) -> float:
    """Of the skeleton; where its ankles are not seen, judged by what is."""
    seen = float(np.ptp(points[points[:, 2] > 0, 1]))
    if (points[_ANKLES, 2] > 0).any():
        return seen
    levels = [(level, points[INDEX[name], 1]) for name, level in _LEVELS.items() if points[INDEX[name], 2] > 0]
    if not levels:
        return seen
    (upper, y_upper), (lower, y_lower) = min(levels), max(levels)
    return max(seen, float((y_lower - y_upper) / (lower - upper))) if lower > upper else seen


def _middle(points: np.ndarray) -> float:
    """Where somebody stands: the neck, or the middle of what is seen."""
    neck = points[INDEX["neck"]]
    return float(neck[0] if neck[2] > 0 else points[points[:, 2] > 0, 0].mean())


def _inside(box: np.ndarray, size: Size, number: int) -> Box:
    """Whole pixels of the picture."""
    left, top = (max(0, int(value)) for value in box[:2])
    right, bottom = (min(side, int(np.ceil(value))) for value, side in zip(box[2:], size, strict=True))
    if right <= left or bottom <= top:
        raise MixshowError(f"person {number}: stands outside of the picture of {size[0]}x{size[1]} pixels")
    return left, top, right, bottom
