"""Poses and the COCO-18 skeletons they give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

JOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
INDEX = {name: i for i, name in enumerate(JOINTS)}

# Lengths as parts of the body height (from the top of the head to the soles when standing upright).
HEAD_RADIUS = 0.15
_SHOULDERS, _HIPS, _ANKLES = 0.33, 0.60, 0.94
_ARM, _LEG = 0.15, 0.17
_SHOULDER_HALF, _HIP_HALF = 0.115, 0.065


@dataclass(frozen=True)
class Pose:
    """Joint angles in radians. Limbs: 0 hangs straight down, positive moves outwards from the body."""

    name: str
    lean: float
    tilt: float
    arms: tuple[tuple[float, float], tuple[float, float]]  # (right, left) of (upper, lower)
    legs: tuple[tuple[float, float], tuple[float, float]]
    lift: float = 0.0  # height of the soles above the floor, in body heights


def sample_pose(name: str, rng: np.random.Generator) -> Pose:
    """A random pose of the named sort; ``free`` draws every angle from its whole range."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def arm_down() -> tuple[float, float]:
        upper = between(0.15, 0.5)
        return upper, upper + between(-0.3, 0.2)

    def arm_up() -> tuple[float, float]:
        return between(1.7, 2.2), between(2.3, 3.0)

    def arm_any() -> tuple[float, float]:
        upper = between(0.15, 2.6)
        return upper, upper + between(-0.5, 1.0)

    def leg(low: float, high: float) -> tuple[float, float]:
        thigh = between(low, high)
        return thigh, thigh - between(0.0, 0.25)

    lean, tilt, lift = between(-0.08, 0.08), between(-0.16, 0.16), 0.0
    if name == "standing":
        arms, legs = (arm_down(), arm_down()), (leg(0.02, 0.14), leg(0.02, 0.14))
    elif name == "waving":
        arms = (arm_up(), arm_down()) if rng.random() < 0.5 else (arm_down(), arm_up())
        legs = (leg(0.02, 0.2), leg(0.02, 0.2))
    elif name == "walking":
        arms = (between(0.5, 0.9), between(0.1, 0.5)), (between(0.5, 0.9), between(0.9, 1.5))
        legs = (between(0.3, 0.5), between(0.2, 0.6)), (between(0.35, 0.6), between(-0.3, 0.1))
        if rng.random() < 0.5:
            arms, legs = arms[::-1], legs[::-1]
    elif name == "jumping":
        arms = (arm_up(), arm_up())
        legs = (between(0.5, 0.9), between(-0.2, 0.5)), (between(0.5, 0.9), between(-0.2, 0.5))
        lift = between(0.05, 0.1)
    elif name == "free":
        lean, tilt = between(-0.16, 0.16), between(-0.28, 0.28)
        arms, legs = (arm_any(), arm_any()), (leg(-0.02, 0.5), leg(-0.02, 0.5))
    else:
        raise ValueError(f"unknown pose {name!r}")
    return Pose(name, lean, tilt, arms, legs, lift)


def build_skeleton(pose: Pose, height: float, hip_x: float, floor_y: float, rng: np.random.Generator) -> np.ndarray:
    """Key points (18, 3), x and y in pixels and 1 for visible, of a body standing on ``floor_y``."""
    arm, leg, width = height * _ARM * rng.uniform(0.94, 1.06), height * _LEG, rng.uniform(0.94, 1.06)
    points = np.zeros((18, 2))
    hips = np.zeros(2)
    along = np.array([np.sin(pose.lean), -np.cos(pose.lean)])  # up the spine
    across = np.array([-along[1], along[0]])  # to the picture's right
    neck = hips + along * height * (_HIPS - _SHOULDERS)
    points[INDEX["neck"]] = neck

    for side, sign, (upper, lower), (thigh, shin) in zip(
        ("right", "left"), (-1.0, 1.0), pose.arms, pose.legs, strict=True
    ):
        shoulder = neck + across * sign * height * _SHOULDER_HALF * width - along * height * 0.015
        elbow = shoulder + arm * _direction(upper, sign)
        hip = hips + across * sign * height * _HIP_HALF * width
        knee = hip + leg * _direction(thigh, sign)
        for name, value in (
            ("shoulder", shoulder), ("elbow", elbow), ("wrist", elbow + arm * _direction(lower, sign)),
            ("hip", hip), ("knee", knee), ("ankle", knee + leg * _direction(shin, sign)),
        ):  # fmt: skip
            points[INDEX[f"{side}_{name}"]] = value

    turn = pose.lean + pose.tilt
    up, right = np.array([np.sin(turn), -np.cos(turn)]), np.array([np.cos(turn), np.sin(turn)])
    radius = height * HEAD_RADIUS
    nose = neck + along * height * 0.025 + up * radius * 1.02
    points[INDEX["nose"]] = nose
    for side, sign in (("right", -1.0), ("left", 1.0)):
        points[INDEX[f"{side}_eye"]] = nose + right * sign * radius * 0.38 + up * radius * 0.12
        points[INDEX[f"{side}_ear"]] = nose + right * sign * radius * 0.95

    soles = max(points[INDEX["right_ankle"]][1], points[INDEX["left_ankle"]][1]) + height * (0.97 - _ANKLES)
    points += np.array([hip_x, floor_y - pose.lift * height - soles])
    return np.concatenate([points, np.ones((18, 1))], axis=1).astype(np.float32)


def _direction(angle: float, sign: float) -> np.ndarray:
    return np.array([sign * np.sin(angle), np.cos(angle)])
