"""Poses with names, as joint angles; `mixshow pose show` draws them."""

from __future__ import annotations

import numpy as np

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.sampling.joints import INDEX, JOINTS
from mixshow.sampling.skeleton import ADULT, Body, Pose, pose_skeleton

_DOWN = (0.28, 0.12)  # an arm at rest
_STRAIGHT = (0.07, 0.03)  # a leg

# Angles as in `Pose`: of the figure's right arm and leg first, which are at the picture's left.
_POSES = (
    Pose("standing", 0, 0, arms=(_DOWN, _DOWN), legs=(_STRAIGHT, _STRAIGHT)),
    Pose("waving", 0, 0.06, arms=(_DOWN, (1.95, 2.75)), legs=(_STRAIGHT, _STRAIGHT)),
    Pose("arms_up", 0, 0, arms=((2.1, 2.7), (2.1, 2.7)), legs=((0.12, 0.08), (0.12, 0.08))),
    Pose("arms_out", 0, 0, arms=((1.55, 1.55), (1.55, 1.55)), legs=((0.1, 0.06), (0.1, 0.06))),
    Pose("hands_on_hips", 0, 0, arms=((0.85, -0.85), (0.85, -0.85)), legs=((0.14, 0.1), (0.14, 0.1))),
    Pose("crossed_arms", 0, 0, arms=((0.3, -1.75), (0.3, -1.55)), legs=(_STRAIGHT, _STRAIGHT)),
    Pose("pointing", 0, 0.06, arms=(_DOWN, (1.5, 1.6)), legs=(_STRAIGHT, (0.14, 0.1))),
    Pose("shrugging", 0, -0.12, arms=((0.4, 1.75), (0.4, 1.75)), legs=(_STRAIGHT, _STRAIGHT)),
    Pose("thinking", 0, -0.1, arms=((0.3, -1.5), (0.25, -2.65)), legs=(_STRAIGHT, (0.12, 0.06))),
    Pose("walking", 0.02, 0, arms=((0.6, 0.3), (0.65, 1.1)), legs=((0.35, 0.5), (0.45, 0.0))),
    Pose("running", 0.08, 0, arms=((0.9, 2.2), (0.8, -0.5)), legs=((0.75, 0.2), (0.25, 0.75)), lift=0.02,
         leg_lengths=((0.95, 0.9), (1.0, 0.85))),
    Pose("jumping", 0, 0, arms=((1.95, 2.6), (1.95, 2.6)), legs=((0.7, 0.15), (0.7, 0.15)), lift=0.08),
    Pose("dancing", -0.1, 0.14, arms=((1.2, 0.5), (2.1, 2.7)), legs=((0.45, 0.1), (0.2, 0.3))),
    Pose("sitting", 0, 0, arms=((0.35, 0.0), (0.35, 0.0)), legs=((0.45, 0.02), (0.45, 0.02)),
         leg_lengths=((0.4, 1.0), (0.4, 1.0))),
    Pose("kneeling", 0, 0, arms=(_DOWN, _DOWN), legs=((0.2, 0.6), (0.2, 0.6)), leg_lengths=((1.0, 0.15), (1.0, 0.15))),
)  # fmt: skip
POSES = {pose.name: pose for pose in _POSES}
ANCHORS = ("feet", "hips")


def named_person(
    name: str,
    at: tuple[float, float],
    height: float,
    *,
    anchor: str = "feet",
    body: Body = ADULT,
    mirror: bool = False,
) -> np.ndarray:
    """The key points of a person in a named pose.

    Args:
        name: of `POSES`.
        at: (x, y) of the floor below the person (`feet`), or of the middle of the hips.
        height: of the person when standing upright, in the unit of `at`: sitting ones take less.
        anchor: what `at` is the place of, of `ANCHORS`.
        mirror: left and right changed over.

    Returns:
        (18, 3): x, y in the unit of `at`, and 1 for visible.

    Raises:
        MixshowError: no pose of that name.
    """
    if name not in POSES:
        raise MixshowError(f"expected a named pose, found '{name}'{did_you_mean(name, POSES)}")
    pose = POSES[name]
    points, floor = pose_skeleton(pose, height, body)
    if mirror:
        points = _mirrored(points)
    below = floor + pose.lift * height if anchor == "feet" else 0.0
    points += np.array([at[0], at[1] - below])
    return np.concatenate([points, np.ones((len(points), 1))], axis=1)


def _mirrored(points: np.ndarray) -> np.ndarray:
    """The same in a mirror: the right hand does what the left did."""
    swapped = {"right": "left", "left": "right"}
    order = [INDEX["_".join([swapped.get(part, part) for part in name.split("_")])] for name in JOINTS]
    return points[order] * (-1, 1)
