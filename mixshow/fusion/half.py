"""Symmetric matrices by one half of them: a file holds no more, and sums and products need no more.

The half of `[n, n]` is `[n + 1, ceil(n / 2)]` (rectangular full packed form, Gustavson 2010): the off-diagonal block
and, one row apart in one square, the lower triangle of the first diagonal block and the upper one of the second. So
whole blocks are copied and multiplied, which is much faster than picking elements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_STRIP = 256  # rows at a time: memory of a matrix's size takes longer to get than to fill
Place = tuple[slice, slice, Tensor, "Callable[[Tensor], Tensor] | None"]


def packed(matrix: Tensor) -> Tensor:
    """Half of a symmetric matrix `[n, n]`, as `[n + 1, ceil(n / 2)]`."""
    half = _zero_half(matrix, len(matrix))
    for rows, columns, place, triangle in _places(half):
        _put(place, matrix[rows, columns], triangle)
    return half


def unpacked(packed: Tensor) -> Tensor:
    """The symmetric matrix `[n, n]` of its half."""
    matrix = packed.new_empty(len(packed) - 1, len(packed) - 1)
    for rows, columns, place, triangle in _places(packed):
        if triangle is None:
            matrix[rows, columns], matrix[columns, rows] = place, place.mT
        else:
            matrix[rows, columns] = _mirrored(triangle(place))
    return matrix


def half_times(rows: Tensor, packed: Tensor) -> Tensor:
    """`rows @ matrix` for rows `[any, n]`, with half of the matrix, which may be in another precision."""
    product = torch.zeros_like(rows)
    for own, columns, place, triangle in _places(packed):
        place = place.to(rows)
        if triangle is None:
            product[:, columns] += rows[:, own] @ place
            product[:, own] += rows[:, columns] @ place.mT
        else:
            product[:, columns] += rows[:, own] @ _mirrored(triangle(place))
    return product


def half_of_square(rows: Tensor) -> Tensor:
    """What summed up with the half of a matrix G gives `tr(R G R^T)`: the half of `R^T R`, off its diagonal twice."""
    half, twice = _zero_half(rows, rows.shape[1]), 2 * rows
    for own, columns, place, triangle in _places(half):
        product = rows[:, own].mT @ twice[:, columns]
        if triangle is not None:
            product.diagonal().mul_(0.5)
        _put(place, product, triangle)
    return half


def _zero_half(like: Tensor, width: int) -> Tensor:
    return like.new_zeros(width + 1, (width + 1) // 2)


def _places(half: Tensor) -> Iterator[Place]:
    """Where the elements of a matrix are, each once, in strips of their rows.

    Yields:
        Rows and columns, their place in the half, and which triangle of it is theirs; None: all.
    """
    width, first = len(half) - 1, half.shape[1]
    block, lower, upper = half[: width - first], half[width - first + 1 :], half[width - first : -1, : width - first]
    for start in range(0, width - first, _STRIP):
        own = slice(start, min(start + _STRIP, width - first))
        yield _after(first, own), slice(first), block[own], None
        if start:
            yield slice(first, first + start), _after(first, own), upper[:start, own], None
        yield _after(first, own), _after(first, own), upper[own, own], torch.triu
    for start in range(0, first, _STRIP):
        own = slice(start, min(start + _STRIP, first))
        if start:
            yield own, slice(start), lower[own, :start], None
        yield own, own, lower[own, own], torch.tril


def _after(start: int, own: slice) -> slice:
    return slice(start + own.start, start + own.stop)


def _put(place: Tensor, values: Tensor, triangle: Callable[[Tensor], Tensor] | None) -> None:
    """Into a half that is zero there."""
    place += values if triangle is None else triangle(values)


def _mirrored(triangle: Tensor) -> Tensor:
    return triangle + triangle.mT - torch.diag(triangle.diagonal())


@dataclasses.dataclass(frozen=True, eq=False)
class HalfMoment:
    """Inputs of one layer, summed up; the moment by half of it.

    Attributes:
        half: of `sum x x^T` over the rows, `[in + 1, ceil(in / 2)]`, in the precision of its file.
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
        """The whole of it, formed: `[in, in]`, float64."""
        return unpacked(self.half.double())

    @property
    def lower(self) -> Tensor:
        """`[in, in]` in the half's precision, of which the lower triangle is the moment's; copied in whole blocks."""
        first, second = self.half.shape[1], len(self.half) - 1 - self.half.shape[1]
        moment = self.half.new_zeros(self.shape)
        moment[first:, :first], moment[:first, :first] = self.half[:second], self.half[second + 1 :]
        moment[first:, first:] = self.half[second : 2 * second, :second].mT
        return moment

    @property
    def diagonal(self) -> Tensor:
        """Of the moment, `[in]`, float64."""
        first = self.half.shape[1]
        triangles = self.half[len(self.half) - first - 1 :]
        return torch.cat([triangles.diagonal(-1), triangles.diagonal()[: len(self.half) - 1 - first]]).double()
