"""Borders that show in a picture, and those that do not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mixshow.evaluation.seams import seam
from mixshow.puppets.world import WIDE


def ramp(jump: int = 0, at: int = 100) -> Image.Image:
    """A picture that gets brighter by 1 every 2 pixels, and at one place by more."""
    row = np.arange(WIDE[0]) // 2 + np.where(np.arange(WIDE[0]) >= at, jump, 0)
    return Image.fromarray(np.repeat(row[None].astype(np.uint8), WIDE[1], axis=0)).convert("RGB")


def test_a_seam_is_a_step_beyond_what_lies_beside_it() -> None:
    box = (100, 0, WIDE[0], WIDE[1])
    assert seam(ramp(), [box]) == pytest.approx(1.0)
    assert seam(ramp(jump=8), [box]) == pytest.approx(3.0)  # 4 levels between the means, and 8 more
    assert seam(ramp(jump=8), [(0, 0, *WIDE)]) is None  # the picture's own border
