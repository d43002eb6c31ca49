"""Draws COCO-18 skeletons the way OpenPose does, as the pose adapters were trained to read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

# Pairs of key points, in the order in which OpenPose draws and colours its limbs.
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
_LIMB_STRENGTH = 0.6  # OpenPose darkens the limbs so that the joints stand out


def draw_openpose(people: Sequence[np.ndarray], size: tuple[int, int]) -> Image.Image:
    """The pose picture of some people.

    Args:
        people: one (18, 3) array per person: x, y in pixels, and above 0 where the key point is visible.
        size: (width, height) in pixels. Lines are 4 px thick at a height of 512 px, and never below 2 px.
    """
    picture = Image.new("RGB", size, (0, 0, 0))
    draw = ImageDraw.Draw(picture)
    width = max(2, round(size[1] * 4 / 512))
    for points in people:
        for (first, second), colour in zip(LIMBS, COLOURS, strict=False):
            if points[first, 2] > 0 and points[second, 2] > 0:
                ends = [tuple(points[i, :2].tolist()) for i in (first, second)]
                draw.line(ends, fill=tuple(int(value * _LIMB_STRENGTH) for value in colour), width=width)
        for point, colour in zip(points, COLOURS, strict=True):
            if point[2] > 0:
                x, y = point[:2].tolist()
                radius = width / 2
                draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    return picture
