"""A person for small scenes, and whether pictures are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PERSON = [[20 + 3 * i, 10 + 2 * i] for i in range(18)]


def same(first: Path, second: Path) -> bool:
    return np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))
