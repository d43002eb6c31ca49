"""Block-wise turns of the channels of a weight or of activations: the parts of which orthogonal changes are made."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mixshow.lycoris.layer import MOVE

PASS = 3 * MOVE  # what a stage costs beside its products: channels are gathered, turned, added
_NARROW = 16  # width below which a product of matrices loses speed


@dataclasses.dataclass(frozen=True)
class Stage:
    """Matrices that act on groups of channels, each less the identity.

    The channel axis reads as `[outer, group, inner, low]`; for every `(outer, inner)` one matrix acts on the
    `group * low` channels that share them. With `group == 1` these are neighbours.

    Attributes:
        changes: `[outer * inner, group * low, group * low]`.
    """

    changes: Tensor
    outer: int
    group: int
    inner: int
    low: int

    @property
    def width(self) -> int:
        """Multiplications per channel."""
        return self.group * self.low

    def to(self, dtype: torch.dtype) -> Stage:
        return dataclasses.replace(self, changes=self.changes.to(dtype))

    def on_columns(self, h: Tensor) -> Tensor:
        """The change of `h [batch, channels, n]`."""
        batch, channels, n = h.shape
        axes = (batch, self.outer, self.group, self.inner, self.low, n)
        blocks = h.reshape(axes).transpose(2, 3).reshape(batch, -1, self.width, n)
        turned = self.changes @ blocks
        swapped = turned.reshape(batch, self.outer, self.inner, self.group, self.low, n)
        return swapped.transpose(2, 3).reshape(batch, channels, n)

    def on_rows(self, h: Tensor) -> Tensor:
        """The change of `h [n, channels]`."""
        n, channels = h.shape
        blocks = h.reshape(n, self.outer, self.group, self.inner, self.low).permute(1, 3, 0, 2, 4)
        turned = blocks.reshape(-1, n, self.width) @ self.changes.mT
        swapped = turned.reshape(self.outer, self.inner, n, self.group, self.low)
        return swapped.permute(2, 0, 3, 1, 4).reshape(n, channels)


def neighbours(changes: Tensor) -> Stage:
    """A stage of blocks of neighbouring channels.

    Several small blocks are taken together as one block-diagonal matrix: products of narrow matrices take longer.

    Args:
        changes: `[count, size, size]`.
    """
    count, size = changes.shape[:2]
    together = blocks_together(count, size)
    apart = torch.eye(together, dtype=changes.dtype, device=changes.device)[:, None, :, None]
    joined = apart * changes.reshape(-1, together, size, 1, size)
    width = together * size
    return Stage(joined.reshape(-1, width, width), outer=count // together, group=1, inner=1, low=width)


def blocks_together(count: int, size: int) -> int:
    """How many of `count` blocks one matrix is made of."""
    return next((n for n in range(1, count + 1) if count % n == 0 and _NARROW <= n * size <= 2 * _NARROW), 1)


def turned(stages: list[Stage], h: Tensor, *, rows: bool) -> Tensor:
    """What the stages, one after the other, change of `h`; never formed as a difference.

    Args:
        h: `[batch, channels, n]`, or `[n, channels]` for `rows`.
    """
    change: Tensor | None = None
    for stage in stages:
        so_far = h if change is None else h + change
        step = stage.on_rows(so_far) if rows else stage.on_columns(so_far)
        change = step if change is None else change + step
    return torch.zeros_like(h) if change is None else change
