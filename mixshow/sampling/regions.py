"""Regions of a picture: where they are, and what share of every position each of them has."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from mixshow.sampling.averaging import averaged

_NOTHING = 1e-9  # a share below it is none


class Edges(Enum):
    """How a box ends inside a coarse position.

    `HARD`: positions that lie wholly inside belong to the box, others do not (published behaviour; a small box has no
    position at all in the coarsest layers). `SOFT`: a position belongs to the box by the share of it that lies inside.
    """

    HARD = "hard"
    SOFT = "soft"


class Area(Protocol):
    """Some part of a picture: a box, or anything else that can say how much of each position it covers."""

    def coverage(self, rows: int, columns: int, size: tuple[int, int], edges: Edges) -> Tensor:
        """How much of each position is covered: `[rows, columns]`, float64, 0 to 1; `size` in pixels."""
        ...

    def problem(self, size: tuple[int, int]) -> str | None:
        """What is wrong with it in a picture of `size` (width, height) pixels; None when nothing is."""
        ...


@dataclasses.dataclass(frozen=True)
class PixelBox:
    """A box in pixels of the picture; right and bottom are the first pixels outside."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def from_numbers(cls, numbers: Sequence[float], size: tuple[int, int]) -> PixelBox:
        """A box of `[left, top, right, bottom]`.

        Args:
            numbers: fractions of the picture when none is above 1, otherwise pixels.
            size: (width, height) of the picture in pixels.
        """
        factors = (*size, *size) if max(numbers) <= 1 else (1, 1, 1, 1)
        return cls(*(round(number * factor) for number, factor in zip(numbers, factors)))

    @classmethod
    def from_published(cls, numbers: Sequence[int]) -> PixelBox:
        """A box in the order of Mix-of-Show's files, `[top, left, bottom, right]` in pixels."""
        top, left, bottom, right = numbers
        return cls(left, top, right, bottom)

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """`(left, top, right, bottom)`"""
        return float(self.left), float(self.top), float(self.right), float(self.bottom)

    def problem(self, size: tuple[int, int]) -> str | None:
        """See `Area`."""
        place = f"[left {self.left}, top {self.top}, right {self.right}, bottom {self.bottom}]"
        if self.right <= self.left or self.bottom <= self.top:
            return f"{place} has no area; expected left < right and top < bottom"
        if self.left < 0 or self.top < 0 or self.right > size[0] or self.bottom > size[1]:
            return f"{place} is not inside the picture of {size[0]}x{size[1]} pixels"
        return None

    def coverage(self, rows: int, columns: int, size: tuple[int, int], edges: Edges) -> Tensor:
        """See `Area`."""
        vertical = _covered(self.top, self.bottom, size[1], rows, edges)
        horizontal = _covered(self.left, self.right, size[0], columns, edges)
        return vertical[:, None] * horizontal


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of the picture with its own prompt.

    Attributes:
        negative_prompt: what guidance leads away from inside the region.
        base_ratio: part of the attention that stays with the scene's base prompt, 0.0 to 1.0.
        priority: where regions overlap, only the highest one is.
        weight: where regions of one priority overlap, they divide the place by these.
        span: part of the steps in which its prompt acts, from 0.0 to 1.0; outside of it the base prompt does.
        guidance: classifier-free guidance in its area; None: the scene's.
        seed_offset: its area's start noise is that of the picture's seed plus this.
        condition_weights: factors on the weights of the scene's conditions in its area, in their order, the pose's
            behind them; 1 for those that are not there.
        tokens: concept tokens it is about; none: those in its prompt.
    """

    area: Area
    prompt: str
    negative_prompt: str = ""
    base_ratio: float = 0.0
    priority: float = 0.0
    weight: float = 1.0
    span: tuple[float, float] = (0.0, 1.0)
    guidance: float | None = None
    seed_offset: int = 0
    condition_weights: tuple[float, ...] = ()
    tokens: tuple[str, ...] = ()


def region_shares(
    regions: Sequence[Region], rows: int, columns: int, size: tuple[int, int], edges: Edges = Edges.HARD
) -> Tensor:
    """The share each region has of each position.

    Where regions overlap, the one of the highest priority has the place; those of the same priority divide it between
    them by their weights. With soft edges that is decided for every pixel and a position has the mean of its pixels;
    with hard ones it is decided for whole positions.

    Args:
        size: (width, height) of the picture in pixels.

    Returns:
        `[1 + regions, rows, columns]` in float64; the first is what is left to the background. Sums to one.
    """
    if not regions:
        return torch.ones(1, rows, columns, dtype=torch.float64)
    if edges is Edges.SOFT:
        return averaged_shares(_divided(regions, size[1], size[0], size, edges), rows, columns)
    return _divided(regions, rows, columns, size, edges)


def averaged_shares(shares: Tensor, rows: int, columns: int) -> Tensor:
    """Shares of the pixels, `[1 + regions, height, width]`, as shares of coarser positions."""
    shares = averaged(shares, rows, columns)
    shares = torch.where(shares < _NOTHING, 0, shares)  # rounding errors would have to be computed like regions
    return shares / shares.sum(0)


def _divided(regions: Sequence[Region], rows: int, columns: int, size: tuple[int, int], edges: Edges) -> Tensor:
    """Shares at the positions of one grid, the highest priority first."""
    shares = torch.zeros(1 + len(regions), rows, columns, dtype=torch.float64)
    left = torch.ones(rows, columns, dtype=torch.float64)
    for priority in sorted({region.priority for region in regions}, reverse=True):
        level = [i for i, region in enumerate(regions) if region.priority == priority]
        covered = torch.stack([regions[i].area.coverage(rows, columns, size, edges) for i in level])
        weighted = covered * torch.tensor([regions[i].weight for i in level], dtype=torch.float64)[:, None, None]
        together = torch.minimum(covered.sum(0), left)
        divisor = torch.where(together > 0, weighted.sum(0), 1)
        shares[[1 + i for i in level]] = weighted * (together / divisor)
        left = left - together
    shares[0] = left
    return shares


def _covered(start: int, end: int, length: int, positions: int, edges: Edges) -> Tensor:
    """Coverage of the positions along one side by the pixels from `start` to `end` of `length`."""
    edge = torch.arange(positions + 1, dtype=torch.float64) * length  # in units of 1 / positions pixels: exact
    overlap = edge[1:].clamp(max=end * positions) - edge[:-1].clamp(min=start * positions)
    share = overlap.clamp(min=0) / length
    return share if edges is Edges.SOFT else (share == 1).double()
