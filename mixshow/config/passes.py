"""Options of what a scene's picture begins from, and of a second pass over it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from mixshow.config.load import Section, option


@dataclasses.dataclass(frozen=True)
class ImageOptions(Section):
    """A picture to begin from: `file`, or `png` in pictures that mixshow made."""

    file: Path | None = option("a picture; one of another size is stretched over the scene", None)
    png: str | None = option("a picture in base64, as pictures that mixshow made carry it", None)
    strength: float | None = option(
        "the part of the steps that is made, the last ones; null: 0.6, and with redo 0.8", None
    )
    redo: list[int | str] = option(
        "regions that are made again, by number from 0 or by 'concept'; every other pixel stays. None: all is made",
        factory=list,
    )
    margin: int = option("pixels by which the area of redo is larger than its regions on every side", 16)
    feather: int = option("width of that area's soft border in pixels, half of it outside of the margin", 16)

    @property
    def made_part(self) -> float:
        """The strength that counts."""
        return self.strength if self.strength is not None else 0.8 if self.redo else 0.6

    def problems(self) -> list[str]:
        given = [name for name in ("file", "png") if getattr(self, name) is not None]
        found = []
        if len(given) != 1:
            found.append(f"file: expected a picture to begin from, found {' and '.join(given) or 'none'}")
        if not 0 < self.made_part <= 1:
            found.append(f"strength: expected above 0, up to 1, found {self.strength}")
        for name in ("margin", "feather"):
            if getattr(self, name) < 0:
                found.append(f"{name}: expected 0 or more pixels, found {getattr(self, name)}")
        return found


@dataclasses.dataclass(frozen=True)
class HiresOptions(Section):
    """The second pass."""

    scale: float | None = option("its size over the scene's, rounded to what the model can make; null: 1.5", None)
    size: tuple[int, int] | None = option("its [width, height] in pixels, instead of scale", None)
    strength: float = option("the part of its steps that is made, the last ones", 0.5)
    steps: int | None = option("steps of the whole way; null: the scene's", None)
    upscale: Literal["latent", "picture"] = option(
        "what is enlarged: the latents (free, but needs a strength of 0.5 or more), or the decoded picture", "latent"
    )

    def problems(self) -> list[str]:
        found = []
        if self.scale is not None and self.size is not None:
            found.append("size: expected it or scale, found both")
        if self.scale is not None and not 1 < self.scale <= 8:
            found.append(f"scale: expected above 1, up to 8, found {self.scale}")
        if self.size is not None and min(self.size) <= 0:
            found.append(f"size: expected [width, height] in pixels, found {list(self.size)}")
        if not 0 < self.strength <= 1:
            found.append(f"strength: expected above 0, up to 1, found {self.strength}")
        if self.steps is not None and self.steps < 1:
            found.append(f"steps: expected 1 or more, found {self.steps}")
        return found


@dataclasses.dataclass(frozen=True)
class DetailOptions(Section):
    """Every region made once more, alone and enlarged, when all else is done."""

    strength: float = option("the part of the steps that is made, the last ones", 0.8)
    regions: list[int | str] = option("which, by number from 0 or by 'concept'; none: all", factory=list)
    guidance: float | None = option("classifier-free guidance; null: the region's", None)
    steps: int | None = option("steps of the whole way; null: the scene's", None)
    margin: float = option(
        "how much further than the region the picture changes, where no other region is, and the width of that "
        "border; a share of the region's longer side",
        0.06,
    )
    padding: float = option("how much more of the picture is seen around it, a share of the longer side", 0.05)
    condition_weight: float = option(
        "factor on the weights of pose and conditions; the picture shows the pose, too", 1.0
    )

    def problems(self) -> list[str]:
        found = []
        if not 0 < self.strength <= 1:
            found.append(f"strength: expected above 0, up to 1, found {self.strength}")
        if self.steps is not None and self.steps < 1:
            found.append(f"steps: expected 1 or more, found {self.steps}")
        if self.guidance is not None and not 1 <= self.guidance < math.inf:
            found.append(f"guidance: expected 1 or more, found {self.guidance}")
        for name in ("margin", "padding", "condition_weight"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name}: expected 0 to 1, found {getattr(self, name)}")
        return found
