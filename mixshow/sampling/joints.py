"""The 18 key points of COCO as OpenPose orders them, and where its other models have them."""

from __future__ import annotations

import numpy as np

JOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
INDEX = {name: i for i, name in enumerate(JOINTS)}
POINTS = len(JOINTS)

# BODY_25 has the middle of the hips at 8 and the feet from 19 on.
_OF_BODY_25 = (*range(8), *range(9, 19))
# BODY_135 has faces and hands from 25 on, and before them no neck but the base of the head (17) and its top.
_NO_NECK = -1
_OF_BODY_135 = (0, _NO_NECK, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
_COCO, _BODY_25, _BODY_135 = POINTS, 25, 135


def coco_of(points: np.ndarray) -> np.ndarray:
    """The (18, 3) COCO key points among those of any body model of OpenPose.

    Where a model has no neck it is half-way between the shoulders, as in what OpenPose was trained on.

    Args:
        points: (18, 3), (25, 3) of BODY_25 or (135, 3) of BODY_135: x, y, confidence.

    Raises:
        ValueError: another number of points.
    """
    if len(points) == _COCO:
        return points
    if len(points) == _BODY_25:
        return points[list(_OF_BODY_25)]
    if len(points) != _BODY_135:
        raise ValueError(f"expected {_COCO}, {_BODY_25} or {_BODY_135} key points, found {len(points)}")
    person = points[list(_OF_BODY_135)]
    shoulders = person[[INDEX["right_shoulder"], INDEX["left_shoulder"]]]
    person[INDEX["neck"]] = (*shoulders[:, :2].mean(0), shoulders[:, 2].min())
    return person
