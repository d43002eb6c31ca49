"""Whether the borders of regions show in a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from PIL import Image

NEAR, AWAY = 8, 16  # pixels: what a seam is measured over, and how far the lines are that it is compared with
Box = tuple[int, int, int, int]


def seam(picture: Image.Image, boxes: Sequence[Box]) -> float | None:
    """How much a picture changes across the borders of boxes, as a multiple of the change beside them.

    Args:
        boxes: `(left, top, right, bottom)` in pixels.

    Returns:
        The mean over all borders; about 1 where none shows. None where none has enough picture on both sides.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    found = []
    for left, top, right, bottom in boxes:
        found += [relative_step(pixels[top:bottom], x) for x in (left, right)]
        found += [relative_step(pixels[:, left:right].swapaxes(0, 1), y) for y in (top, bottom)]
    values = [value for value in found if value is not None]
    return statistics.mean(values) if values else None


def relative_step(pixels: np.ndarray, border: int) -> float | None:
    """The change of colour across a column of a picture, relative to that across the parallels beside it."""
    lines = [border - AWAY, border, border + AWAY]
    if lines[0] < NEAR or lines[2] > pixels.shape[1] - NEAR:
        return None
    before, here, behind = (
        np.abs(pixels[:, line - NEAR : line].mean(1) - pixels[:, line : line + NEAR].mean(1)).mean() for line in lines
    )
    beside = (before + behind) / 2
    return float(here / beside) if beside > 0 else None
