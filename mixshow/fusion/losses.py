"""What an error of one row of outputs counts, where it is not its square.

Both are on the scale of squares, so that ridge and anchor mean the same beside them.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor


class RowLoss(Protocol):
    """A loss of every row."""

    def __call__(self, changes: Tensor) -> tuple[Tensor, Tensor]:
        """Values `[rows]`, and their gradients `[rows, out]`, at changes of the outputs `[rows, out]`."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Huber:
    """`|e|^2` of errors e up to `delta` long, `2 delta |e| - delta^2` beyond: rows far off pull less (Huber 1964).

    Attributes:
        wanted: changes of the outputs, `[rows, out]`.
        delta: in units of the outputs.
    """

    wanted: Tensor
    delta: float

    def __call__(self, changes: Tensor) -> tuple[Tensor, Tensor]:
        errors = changes - self.wanted
        sizes = errors.norm(dim=1)
        near = sizes <= self.delta
        values = torch.where(near, sizes.square(), self.delta * (2 * sizes - self.delta))
        shares = torch.where(near, 1.0, self.delta / torch.where(near, 1.0, sizes))
        return values, 2 * shares[:, None] * errors


@dataclasses.dataclass(frozen=True, eq=False)
class Cosine:
    """`scale (1 - cos)` of the angle between outputs and wanted outputs: their directions count, their sizes do not.

    Rows whose outputs are wanted to be zero, or are zero, count nothing.

    Attributes:
        before: outputs of the unchanged layer, `[rows, out]`.
        wanted: changes of the outputs, `[rows, out]`.
        scale: twice the mean square of the wanted outputs makes small angles count as their squared errors do.
    """

    before: Tensor
    wanted: Tensor
    scale: float

    def __call__(self, changes: Tensor) -> tuple[Tensor, Tensor]:
        outputs, goals = self.before + changes, self.before + self.wanted
        sizes, goal_sizes = outputs.norm(dim=1, keepdim=True), goals.norm(dim=1, keepdim=True)
        counted = (sizes > 0) & (goal_sizes > 0)
        unit = outputs / torch.where(counted, sizes, 1.0)
        goal_unit = goals / torch.where(counted, goal_sizes, 1.0)
        cosines = (unit * goal_unit).sum(1, keepdim=True)
        values = torch.where(counted, 1 - cosines, 0.0)
        slopes = torch.where(counted, (cosines * unit - goal_unit) / torch.where(counted, sizes, 1.0), 0.0)
        return self.scale * values[:, 0], self.scale * slopes
