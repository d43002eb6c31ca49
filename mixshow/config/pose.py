"""Options of a scene's pose: where people stand and how."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mixshow.config.load import Section, option

Point = list[float]
_SOURCES = ("image", "json", "people", "photo", "png")
_FAR = 2.0  # fractions beyond it are taken for pixels


@dataclasses.dataclass(frozen=True)
class PersonOptions(Section):
    """One person: a named pose or key points."""

    person: str | None = option("a named pose: standing, waving, ...; `mixshow pose show` draws them all", None)
    at: tuple[float, float] | None = option(
        "[x, y] of the floor below the person, in fractions of the picture, also outside of it; null: people stand "
        "side by side",
        None,
    )
    height: float = option("of the person when standing upright, as a fraction of the picture's height", 0.8)
    anchor: Literal["feet", "hips"] = option("what 'at' is the place of", "feet")
    mirror: bool = option("left and right changed over", False)
    body: Literal["adult", "child", "puppet"] | None = option(
        "proportions; null: puppet for the built-in adapter, adult for others", None
    )
    points: list[Point | None] | None = option("instead of a named pose: 18 COCO points, as in 'people'", None)
    name: str | None = option("what regions call the person; a region's 'concept' does, too", None)

    def problems(self) -> list[str]:
        found = []
        if (self.person is None) == (self.points is None):
            given = "none" if self.person is None else "both"
            found.append(f"person: expected a named pose, or key points in 'points', found {given}")
        if self.at is not None and not all(abs(value) <= _FAR for value in self.at):
            found.append(f"at: expected fractions of the picture such as [0.2, 0.9], found {list(self.at)}")
        if not 0 < self.height <= _FAR:
            found.append(f"height: expected a fraction of the picture's height such as 0.8, found {self.height}")
        return found


@dataclasses.dataclass(frozen=True)
class PoseOptions(Section):
    """Where the people stand: exactly one of `image`, `json`, `people`, `photo` and `png`; a list is `people`."""

    image: Path | None = option("an OpenPose picture; scaled to fit the scene", None)
    json: Path | None = option("OpenPose JSON, or a PNG that carries key points; scaled to fit the scene", None)
    people: list[PersonOptions | list[Point | None]] | None = option(
        "for each person a named pose, {person: waving, at: [0.2, 0.9], height: 0.8}; or 18 COCO points [x, y] or "
        "[x, y, visible], null where not seen; fractions when none is above 1",
        None,
    )
    photo: Path | None = option("a photograph in which people are looked for; scaled to fit the scene", None)
    png: str | None = option("an OpenPose picture in base64, as pictures that mixshow made carry it", None)
    canvas: int | None = option("which canvas of a JSON file that lists several, from 0; null: the first", None)
    detector: Literal["openpose", "dwpose"] = option("what finds people in 'photo'; of the extra 'pose'", "openpose")
    detector_model: str | None = option(
        "a folder or hub id with the detector's weights; null: where its authors published them", None
    )
    margins: tuple[float, float, float] | None = option(
        "room in boxes from the pose at the sides, above and below of a skeleton, in parts of its height; null: by the "
        "adapter",
        None,
    )
    adapter: str = option("'puppets', a folder or a hub id of a T2I-Adapter for poses", "puppets")
    controlnet: str | None = option("instead of the adapter: a folder or a hub id of a ControlNet for poses", None)
    control_type: int | None = option("for union ControlNets: their number of poses", None)
    weight: float = option("factor on what the adapter or ControlNet adds; 0: without", 1.0)
    span: tuple[float, float] = option("part of the steps in which it counts, 0.0 to 1.0", (0.0, 1.0))

    @classmethod
    def in_short(cls, given: Any) -> Mapping[str, Any] | None:
        return {"people": given} if isinstance(given, list) else None

    @property
    def has_points(self) -> bool:
        """Whether it says where people's key points are: a drawn picture does not."""
        return self.image is None and self.png is None

    def problems(self) -> list[str]:
        given = [name for name in _SOURCES if getattr(self, name) is not None]
        found = []
        if len(given) != 1:
            found.append(f"expected one of image, json, people and photo, found {' and '.join(given) or 'none'}")
        if self.people is not None and not self.people:
            found.append("people: expected at least one person, found none; leave pose out for a scene without")
        if not 0 <= self.span[0] < self.span[1] <= 1:
            found.append(f"span: expected two numbers such as [0.0, 0.6], found {list(self.span)}")
        if self.control_type is not None and self.controlnet is None:
            found.append(f"control_type: expected a controlnet beside it, found {self.control_type} alone")
        if self.canvas is not None and self.canvas < 0:
            found.append(f"canvas: expected 0 or more, found {self.canvas}")
        if self.margins is not None and not all(0 <= margin < math.inf for margin in self.margins):
            found.append(f"margins: expected three numbers of 0 or more, found {list(self.margins)}")
        if self.photo is not None and not self.photo.is_file():
            found.append(f"photo: {self.photo}: no such picture")
        return found
