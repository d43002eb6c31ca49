"""Options of one condition of a scene: a picture that guides the layout."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from mixshow.config.load import Section, option


@dataclasses.dataclass(frozen=True)
class ConditionOptions(Section):
    """A picture and what reads it: one of `image` and `png`, one of `adapter` and `controlnet`."""

    image: Path | None = option("a picture of the kind that the adapter or ControlNet reads", None)
    png: str | None = option("the picture in base64, as pictures that mixshow made carry it", None)
    adapter: str | None = option("a folder or a hub id of a T2I-Adapter", None)
    controlnet: str | None = option("a folder or a hub id of a ControlNet", None)
    control_type: int | None = option("for union ControlNets: the number of the kind of picture", None)
    weight: float = option("factor on what it adds; 0: without", 1.0)
    span: tuple[float, float] = option("part of the steps in which it counts, 0.0 to 1.0", (0.0, 1.0))
    mask: Path | None = option("a grey picture of where it counts, white: in full; stretched over the scene", None)
    mask_png: str | None = option("that mask in base64, as pictures that mixshow made carry it", None)
    fit: Literal["letterbox", "stretch", "refuse"] = option(
        "what happens to a picture of another aspect ratio than the scene's", "letterbox"
    )

    def problems(self) -> list[str]:
        found = []
        for names in (("image", "png"), ("adapter", "controlnet")):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) != 1:
                found.append(f"expected one of {' and '.join(names)}, found {' and '.join(given) or 'none'}")
        if self.mask is not None and self.mask_png is not None:
            found.append("mask_png: expected one mask, found mask and mask_png")
        if self.control_type is not None and self.controlnet is None:
            found.append(f"control_type: expected a controlnet beside it, found {self.control_type} alone")
        if not math.isfinite(self.weight):
            found.append(f"weight: expected a number such as 0.8, found {self.weight}")
        if not 0 <= self.span[0] < self.span[1] <= 1:
            found.append(f"span: expected two numbers such as [0.0, 0.6], found {list(self.span)}")
        return found
