"""Symmetric matrices by one half of them: a file holds no more, and sums and products need no more.

The half of `[n, n]` is `[n + 1, ceil(n / 2)]` (rectangular full packed form, Gustavson 2010): the off-diagonal block
and, one row apart in one square, the lower triangle of the first diagonal block and the upper one of the second. So
whole blocks are copied and multiplied, which is much faster than picking elements.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


def packed(matrix: Tensor) -> Tensor:
    """Half of a symmetric matrix `[n, n]`, as `[n + 1, ceil(n / 2)]`."""
    first = (len(matrix) + 1) // 2
    return _joined(matrix[:first, :first], matrix[first:, :first], matrix[first:, first:])


def _joined(first: Tensor, block: Tensor, second: Tensor) -> Tensor:
    """The half of a matrix by its first diagonal block, the block below that, and its second diagonal block."""
    half = first.new_empty(len(block) + len(first) + 1, len(first))
    half[: len(block)] = block
    triangles = half[len(block) :]
    triangles[0] = 0
    triangles[1:] = first.tril()
    triangles[: len(second), : len(second)] += second.triu()
    return half


def unpacked(packed: Tensor) -> Tensor:
    """The symmetric matrix `[n, n]` of its half."""
    block, lower, upper = _blocks(packed)
    first = len(lower)
    matrix = packed.new_empty(len(packed) - 1, len(packed) - 1)
    matrix[:first, :first] = lower
    matrix[:first, :first] += lower.tril_(-1).mT
    matrix[first:, first:] = upper
    matrix[first:, first:] += upper.triu_(1).mT
    matrix[first:, :first], matrix[:first, first:] = block, block.mT
    return matrix


def _blocks(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The off-diagonal block, the first diagonal block's lower triangle and the second one's upper triangle."""
    width, first = len(packed) - 1, packed.shape[1]
    block, triangles = packed[: width - first], packed[width - first :]
    return block, triangles[1:].tril(), triangles[: width - first, : width - first].triu()


def half_times(rows: Tensor, packed: Tensor) -> Tensor:
    """`rows @ matrix` for rows `[any, n]`, with half of the matrix."""
    block, lower, upper = _blocks(packed)
    left, right = rows[:, : len(lower)], rows[:, len(lower) :]
    return torch.cat(
        [
            left @ lower + left @ lower.mT - left * lower.diagonal() + right @ block,
            right @ upper + right @ upper.mT - right * upper.diagonal() + left @ block.mT,
        ],
        dim=1,
    )


def half_of_square(rows: Tensor) -> Tensor:
    """What summed up with the half of a matrix G gives `tr(R G R^T)`: the half of `R^T R`, off its diagonal twice."""
    first = (rows.shape[1] + 1) // 2
    left, right = rows[:, :first], rows[:, first:]
    twice = 2 * rows
    half = _joined(left.mT @ twice[:, :first], right.mT @ twice[:, :first], right.mT @ twice[:, first:])
    triangles = half[len(half) - first - 1 :]
    triangles.diagonal(-1).mul_(0.5)
    triangles.diagonal()[: rows.shape[1] - first].mul_(0.5)
    return half


@dataclasses.dataclass(frozen=True, eq=False)
class HalfMoment:
    """Inputs of one layer, summed up; the moment by half of it.

    Attributes:
        half: of `sum x x^T` over the rows, `[in + 1, ceil(in / 2)]`, float64.
        rows: number of input rows.
        resolution: eigenvalues below this share of the largest are rounding noise.
    """

    half: Tensor
    rows: int
    resolution: float

    @property
    def shape(self) -> torch.Size:
        """Of the moment."""
        return torch.Size((len(self.half) - 1, len(self.half) - 1))

    @property
    def moment(self) -> Tensor:
        """The whole of it, formed: `[in, in]`."""
        return unpacked(self.half)

    @property
    def diagonal(self) -> Tensor:
        """Of the moment, `[in]`."""
        first = self.half.shape[1]
        triangles = self.half[len(self.half) - first - 1 :]
        return torch.cat([triangles.diagonal(-1), triangles.diagonal()[: len(self.half) - 1 - first]])
