"""Joint angles and a body's proportions -> the COCO-18 key points of a figure seen from the front."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixshow.sampling.joints import INDEX, POINTS

Limb = tuple[float, float]  # of the upper and the lower part


@dataclass(frozen=True)
class Body:
    """Lengths as parts of the body height, from the top of the head to the soles when standing upright.

    Attributes:
        shoulders: how far below the top of the head, as `hips`, `ankles` and `soles`.
        arm: length of the upper arm, and of the forearm.
        leg: length of the thigh, and of the shin.
        shoulder_half: half the width of the shoulders, as `hip_half`.
        head_radius: half of the head, the unit of the next two.
        eyes: how far aside and above of the nose.
        ears: the same.
    """

    shoulders: float
    hips: float
    ankles: float
    arm: float
    leg: float
    shoulder_half: float
    hip_half: float
    head_radius: float
    soles: float = 1.0
    eyes: tuple[float, float] = (0.38, 0.12)
    ears: tuple[float, float] = (0.95, 0.0)


# Of the built-in base's world: a large head, short limbs.
PUPPET = Body(
    shoulders=0.33, hips=0.60, ankles=0.94, soles=0.97, arm=0.15, leg=0.17, shoulder_half=0.115, hip_half=0.065,
    head_radius=0.15,
)  # fmt: skip
# People measure seven to eight heads, children about five.
ADULT = Body(
    shoulders=0.18, hips=0.47, ankles=0.955, arm=0.16, leg=0.2425, shoulder_half=0.105, hip_half=0.052,
    head_radius=0.065, eyes=(0.3, 0.26), ears=(0.68, 0.14),
)  # fmt: skip
CHILD = Body(
    shoulders=0.25, hips=0.53, ankles=0.95, arm=0.15, leg=0.21, shoulder_half=0.105, hip_half=0.055,
    head_radius=0.1, eyes=(0.32, 0.2), ears=(0.75, 0.08),
)  # fmt: skip
BODIES = {"adult": ADULT, "child": CHILD, "puppet": PUPPET}
_SHOULDERS_OVER_NECK, _NOSE_OVER_NECK, _NOSE_IN_HEAD = 0.015, 0.025, 1.02


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians. Limbs: 0 hangs straight down, positive moves outwards from the body.

    Attributes:
        lean: of the spine, to the picture's right; the head goes with it and is tilted by `tilt` more.
        arms: (right, left) of (upper, lower).
        lift: height of the soles above the floor, in body heights.
        arm_lengths: how much of a limb's length is seen: below 1 where it points to the viewer or away.
    """

    name: str
    lean: float
    tilt: float
    arms: tuple[Limb, Limb]
    legs: tuple[Limb, Limb]
    lift: float = 0.0
    arm_lengths: tuple[Limb, Limb] = ((1.0, 1.0), (1.0, 1.0))
    leg_lengths: tuple[Limb, Limb] = ((1.0, 1.0), (1.0, 1.0))


def pose_skeleton(
    pose: Pose, height: float, body: Body, *, arms: float = 1.0, width: float = 1.0
) -> tuple[np.ndarray, float]:
    """A figure's key points around the middle of its hips, y downwards.

    Args:
        height: of the body when standing upright; any unit, that of the result.
        arms: factor on the arms' length.
        width: factor on the width of shoulders and hips.

    Returns:
        (18, 2) positions, and how far below the hips the floor is when `pose.lift` is 0.
    """
    arm, leg = height * body.arm * arms, height * body.leg
    points = np.zeros((POINTS, 2))
    hips = np.zeros(2)
    along = np.array([np.sin(pose.lean), -np.cos(pose.lean)])  # up the spine
    across = np.array([-along[1], along[0]])  # to the picture's right
    neck = hips + along * height * (body.hips - body.shoulders)
    points[INDEX["neck"]] = neck

    for i, (side, sign) in enumerate((("right", -1.0), ("left", 1.0))):
        (upper, lower), (thigh, shin) = pose.arms[i], pose.legs[i]
        (upper_seen, lower_seen), (thigh_seen, shin_seen) = pose.arm_lengths[i], pose.leg_lengths[i]
        shoulder = neck + across * sign * height * body.shoulder_half * width - along * height * _SHOULDERS_OVER_NECK
        elbow = shoulder + arm * upper_seen * _direction(upper, sign)
        hip = hips + across * sign * height * body.hip_half * width
        knee = hip + leg * thigh_seen * _direction(thigh, sign)
        for name, value in (
            ("shoulder", shoulder), ("elbow", elbow), ("wrist", elbow + arm * lower_seen * _direction(lower, sign)),
            ("hip", hip), ("knee", knee), ("ankle", knee + leg * shin_seen * _direction(shin, sign)),
        ):  # fmt: skip
            points[INDEX[f"{side}_{name}"]] = value

    turn = pose.lean + pose.tilt
    up, right = np.array([np.sin(turn), -np.cos(turn)]), np.array([np.cos(turn), np.sin(turn)])
    radius = height * body.head_radius
    nose = neck + along * height * _NOSE_OVER_NECK + up * radius * _NOSE_IN_HEAD
    points[INDEX["nose"]] = nose
    for side, sign in (("right", -1.0), ("left", 1.0)):
        points[INDEX[f"{side}_eye"]] = nose + right * sign * radius * body.eyes[0] + up * radius * body.eyes[1]
        points[INDEX[f"{side}_ear"]] = nose + right * sign * radius * body.ears[0] + up * radius * body.ears[1]

    lowest = max(points[INDEX["right_ankle"]][1], points[INDEX["left_ankle"]][1])
    return points, float(lowest + height * (body.soles - body.ankles))


def _direction(angle: float, sign: float) -> np.ndarray:
    return np.array([sign * np.sin(angle), np.cos(angle)])
