"""Regions made once more, each alone: cut out, enlarged to the base's native size, made again in part, and put back.

Where many stand close together each has few latent positions, and its neighbours' prompts act next to it. Alone on a
canvas of its own a character has all of it, and only its own prompt (known in this field as a detailer of faces, here
of whole regions). `sampling/windows.py` cuts and puts back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class DetailPass:
    """How regions are made once more.

    Attributes:
        strength: the part of the steps that is made, the last ones.
        margin: by which the area that changes is larger than the region on every side, where no other region is; its
            border is as soft. A share of the region's longer side.
        padding: what is seen around the region besides, a share of its longer side.
        condition_weight: factor on the weights of pose and conditions; the picture shows the pose, too.
        guidance: None: the region's.
        steps: of the whole way; None: the scene's.
        regions: numbers of those that are made; none: all.
    """

    strength: float = 0.8
    margin: float = 0.06
    padding: float = 0.05
    condition_weight: float = 1.0
    guidance: float | None = None
    steps: int | None = None
    regions: tuple[int, ...] = ()

    def numbers(self, regions: int) -> Sequence[int]:
        """The numbers of those that are made, of so many regions."""
        return self.regions or range(regions)
