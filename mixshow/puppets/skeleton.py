"""Random poses of the puppet world and the COCO-18 skeletons they give."""

from __future__ import annotations

import numpy as np

from mixshow.sampling.skeleton import PUPPET, Pose, pose_skeleton

HEAD_RADIUS = PUPPET.head_radius


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
    arms, width = rng.uniform(0.94, 1.06), rng.uniform(0.94, 1.06)
    points, soles = pose_skeleton(pose, height, PUPPET, arms=arms, width=width)
    points += np.array([hip_x, floor_y - pose.lift * height - soles])
    return np.concatenate([points, np.ones((len(points), 1))], axis=1).astype(np.float32)
