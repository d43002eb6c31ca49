"""Drawing in picture pixels on a larger PIL image, so that the final downsampling smooths every edge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from mixshow.puppets.palette import Colour

SUPERSAMPLING = 3
Point = tuple[float, float]


class Canvas:
    """A picture of ``size`` (width, height) pixels, kept ``SUPERSAMPLING`` times larger while it is drawn."""

    def __init__(self, size: tuple[int, int], colour: Colour | None = None) -> None:
        self.size = size
        large = (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING)
        if colour is None:
            self.image = Image.new("RGBA", large, (0, 0, 0, 0))
        else:
            self.image = Image.new("RGB", large, colour)
        self._draw = ImageDraw.Draw(self.image)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points], fill=colour)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def circle(self, centre: Point, radius: float, colour: Colour) -> None:
        self.ellipse(centre, (radius, radius), colour)

    def ellipse(self, centre: Point, radii: Point, colour: Colour) -> None:
        (x, y), (rx, ry) = centre, radii
        box = [
            (x - rx) * SUPERSAMPLING,
            (y - ry) * SUPERSAMPLING,
            (x + rx) * SUPERSAMPLING,
            (y + ry) * SUPERSAMPLING,
        ]
        self._draw.ellipse(box, fill=colour)

    def limb(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A thick line through the points with round ends and joints."""
        scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]
        self._draw.line(scaled, fill=colour, width=max(1, round(width * SUPERSAMPLING)))
        for point in points:
            self.circle(point, width / 2, colour)

    def gradient(self, top: float, bottom: float, first: Colour, last: Colour) -> None:
        """Horizontal bands between two heights, from one colour to another."""
        steps = 16
        for step in range(steps):
            part = step / (steps - 1)
            red, green, blue = (round(a + (b - a) * part) for a, b in zip(first, last, strict=True))
            y0, y1 = (top + (bottom - top) * (step + extra) / steps for extra in (0, 1))
            self.rectangle(0, y0, self.size[0], y1 + 1, (red, green, blue))

    def paste(self, other: Canvas, mask: Image.Image | None = None) -> None:
        """Lay another canvas of the same size over this one where ``mask`` (default: its alpha) is white."""
        self.image.paste(other.image, (0, 0), mask if mask is not None else other.image.getchannel("A"))

    def finish(self, blur: float = 0.5) -> Image.Image:
        """The RGB picture at its final size, very mildly blurred."""
        small = self.image.convert("RGB").resize(self.size, Image.Resampling.BOX)
        return small.filter(ImageFilter.GaussianBlur(blur)) if blur else small


@dataclass(frozen=True)
class Frame:
    """A local coordinate system (u right, v down) with its own origin, unit length in pixels and rotation."""

    origin: Point
    unit: float
    angle: float = 0.0

    def at(self, u: float, v: float) -> Point:
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return (
            self.origin[0] + self.unit * (u * cosine - v * sine),
            self.origin[1] + self.unit * (u * sine + v * cosine),
        )

    def shape(self, points: Sequence[Point]) -> list[Point]:
        return [self.at(u, v) for u, v in points]

    def oval(self, u: float, v: float, ru: float, rv: float, start: float = 0.0, end: float = 360.0) -> list[Point]:
        """Points along an ellipse around (u, v), between two angles in degrees, clockwise from the right."""
        count = 33
        angles = [math.radians(start + (end - start) * i / (count - 1)) for i in range(count)]
        return [self.at(u + ru * math.cos(a), v + rv * math.sin(a)) for a in angles]

    def star(self, u: float, v: float, radius: float, inner: float = 0.45) -> list[Point]:
        """A five-pointed star with one point up."""
        radii = [radius if i % 2 == 0 else radius * inner for i in range(10)]
        angles = [math.pi * i / 5 - math.pi / 2 for i in range(10)]
        return [self.at(u + r * math.cos(a), v + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]
