"""Areas of other shapes than boxes: polygons, mask pictures, and any area with a soft border."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mixshow.sampling.averaging import averaged
from mixshow.sampling.regions import Area, Edges

_LINES = 4  # scan lines per pixel of a polygon
_WHOLE = 1 - 1e-9  # coverage that counts as all of a position


@dataclasses.dataclass(frozen=True)
class Polygon:
    """A polygon; where its sides cross, what lies inside is decided by the even-odd rule.

    Attributes:
        points: `(x, y)` of the corners in pixels of the picture.
    """

    points: tuple[tuple[float, float], ...]

    @classmethod
    def from_numbers(cls, points: Sequence[Sequence[float]], size: tuple[int, int]) -> Polygon:
        """A polygon of `[x, y]` corners: fractions of the picture when none is above 1, otherwise pixels."""
        width, height = size if max(max(point) for point in points) <= 1 else (1, 1)
        return cls(tuple((x * width, y * height) for x, y in points))

    def problem(self, size: tuple[int, int]) -> str | None:
        """See `Area`."""
        outside = [point for point in self.points if not (0 <= point[0] <= size[0] and 0 <= point[1] <= size[1])]
        if outside:
            x, y = outside[0]
            return f"corner [{x:g}, {y:g}] is not inside the picture of {size[0]}x{size[1]} pixels"
        if not self.coverage(size[1], size[0], size, Edges.SOFT).any():
            return f"its {len(self.points)} corners have no area between them"
        return None

    def coverage(self, rows: int, columns: int, size: tuple[int, int], edges: Edges) -> Tensor:
        """See `Area`. Exact along a scan line; there are four scan lines per pixel."""
        width, height = size
        crossings = self._crossings(width, height * _LINES)
        border = torch.arange(columns + 1, dtype=torch.float64) * width / columns
        covered = torch.zeros(len(crossings), columns, dtype=torch.float64)
        for start, end in zip(crossings[:, ::2].T, crossings[:, 1::2].T):
            inside = torch.minimum(torch.maximum(border, start[:, None]), end[:, None])
            covered += inside.diff(dim=1) * (columns / width)
        return _ended(averaged(covered, rows, columns), edges)

    def _crossings(self, width: int, lines: int) -> Tensor:
        """Where scan lines enter and leave the polygon, `[lines, even number]`; unused ones at the right border."""
        y = (torch.arange(lines, dtype=torch.float64) + 0.5) / _LINES
        found = torch.full((lines, len(self.points)), float(width), dtype=torch.float64)
        crossed = torch.zeros(lines, dtype=torch.long)
        for side, ((x0, y0), (x1, y1)) in enumerate(zip(self.points, (*self.points[1:], self.points[0]))):
            if y0 != y1:
                meets = (y >= min(y0, y1)) & (y < max(y0, y1))
                found[meets, side] = (x0 + (y[meets] - y0) * (x1 - x0) / (y1 - y0)).clamp(0, width)
                crossed += meets
        return found.sort(dim=1).values[:, : int(crossed.max())]


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """Any shape, as a picture of it that is stretched over the scene's.

    Attributes:
        values: how much of each of its own pixels belongs to the area, `[height, width]`, float64, 0 to 1.
    """

    values: Tensor

    def problem(self, size: tuple[int, int]) -> str | None:
        """See `Area`."""
        return None if self.values.any() else "expected a mask with some white in it, found only black"

    def coverage(self, rows: int, columns: int, size: tuple[int, int], edges: Edges) -> Tensor:
        """See `Area`."""
        return _ended(averaged(self.values, rows, columns), edges)


@dataclasses.dataclass(frozen=True)
class Feathered:
    """An area with a soft border: a straight ramp from 0 to 1, half outside of the border and half inside.

    Neighbours that share a border and a feather still sum to one along it. Where an area ends at the picture's own
    border there is no ramp.

    Attributes:
        pixels: width of the ramp.
    """

    area: Area
    pixels: float

    def problem(self, size: tuple[int, int]) -> str | None:
        """See `Area`."""
        return self.area.problem(size)

    def coverage(self, rows: int, columns: int, size: tuple[int, int], edges: Edges) -> Tensor:
        """See `Area`."""
        fine = self.area.coverage(size[1], size[0], size, Edges.SOFT)
        for _ in range(2):  # along rows, then along columns
            fine = self._blurred(fine).mT.contiguous()
        return _ended(averaged(fine, rows, columns), edges)

    def _blurred(self, values: Tensor) -> Tensor:
        """The mean over so many pixels around each, along the last axis."""
        around = (self.pixels - 1) / 2  # on each side of a pixel's own
        reach = math.ceil(around)
        if reach <= 0:
            return values
        part, length = reach - around, values.shape[-1]
        padded = functional.pad(values[None], (reach, reach), mode="replicate")[0]
        cell = functional.pad(padded, (1, 0)).cumsum(-1)  # integral up to each cell
        first, last = slice(0, length), slice(2 * reach, 2 * reach + length)
        start = cell[:, first] + part * padded[:, first]
        end = cell[:, 1:][:, last] - part * padded[:, last]
        return ((end - start) / self.pixels).clamp(0, 1)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """An area of a picture of one size, in a picture of another.

    Attributes:
        size: (width, height) in pixels of the picture whose pixels the area is told in.
    """

    area: Area
    size: tuple[int, int]

    def problem(self, size: tuple[int, int]) -> str | None:
        """See `Area`."""
        return self.area.problem(self.size)

    def coverage(self, rows: int, columns: int, size: tuple[int, int], edges: Edges) -> Tensor:
        """See `Area`."""
        return self.area.coverage(rows, columns, self.size, edges)


def _ended(coverage: Tensor, edges: Edges) -> Tensor:
    """Coverage with an area's edges in the positions they cross."""
    return coverage if edges is Edges.SOFT else (coverage >= _WHOLE).double()
