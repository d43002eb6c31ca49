"""Second moments of layer inputs: all that fusion keeps of what flows through a model.

A layer's statistics have the size of its input width, whatever the number of prompts, steps or positions. Where a bias
changes too, the input is extended by a constant 1, for which the bias is one more column of the weight. A
normalisation scales and shifts every channel by itself, so its statistics are one small moment per channel, of the
normalised input.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.operation import module_operation

# Relative size below which eigenvalues of a moment are rounding noise: products of fp32 inputs taken in fp64, in fp32.
DOUBLE_RESOLUTION = 1e-10
SINGLE_RESOLUTION = 1e-7
_WIDE = 256  # below, mirroring takes as long as it saves
_BLOCKS = 4


class LayerInputs(Protocol):
    """Inputs of one layer: their moment at hand (`LayerStatistics`), as rows (`KeptRows`), or in a file."""

    @property
    def rows(self) -> int: ...
    @property
    def resolution(self) -> float: ...
    @property
    def shape(self) -> torch.Size: ...
    @property
    def moment(self) -> Tensor: ...


@dataclasses.dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Inputs of one layer, summed up.

    Attributes:
        moment: `sum x x^T` over the rows, `[in, in]`, of a normalisation `[channels, in, in]` with `in` 1, float64;
            `in` counts the constant 1 where there is one.
        rows: number of input rows.
        resolution: eigenvalues below this share of the largest are rounding noise.
    """

    moment: Tensor
    rows: int
    resolution: float = DOUBLE_RESOLUTION

    @property
    def shape(self) -> torch.Size:
        """Of the moment."""
        return self.moment.shape

    @property
    def mean(self) -> Tensor:
        """The moment of one row, in the moment's shape."""
        return self.moment / max(self.rows, 1)

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        """Statistics of both sets of rows together."""
        return LayerStatistics(
            self.moment + other.moment, self.rows + other.rows, max(self.resolution, other.resolution)
        )

    @classmethod
    def of_rows(cls, rows: Tensor, *, elementwise: bool = False, extended: bool = False) -> LayerStatistics:
        """From rows `[..., in]` at hand, in float64; `elementwise` and `extended` as in `second_moment`."""
        rows = rows.detach().flatten(0, -2).double()
        return cls(second_moment(rows, elementwise=elementwise, extended=extended), rows.shape[0])


def second_moment(
    rows: Tensor, *, elementwise: bool = False, extended: bool = False, roots: Tensor | None = None
) -> Tensor:
    """`sum w x x^T` over rows `[rows, in]`.

    Args:
        elementwise: every column is an input of its own, `[columns, 1, 1]`.
        extended: inputs are followed by a constant 1.
        roots: square roots of the rows' weights w, `[rows]`; None: all are 1.
    """
    if not elementwise:
        rows = F.pad(rows, (0, 1), value=1.0) if extended else rows
        return _square(rows if roots is None else rows * roots[:, None])
    columns = rows.T[..., None]
    columns = F.pad(columns, (0, 1), value=1.0) if extended else columns
    columns = columns if roots is None else columns * roots[:, None]
    return columns.mT @ columns


def _square(rows: Tensor) -> Tensor:
    """`rows.T @ rows` with five eighths of its products where it is wide: the blocks above the diagonal, mirrored."""
    width = rows.shape[1]
    if width < _WIDE:
        return rows.T @ rows
    square = rows.new_empty(width, width)
    edges = [width * number // _BLOCKS for number in range(_BLOCKS + 1)]
    for start, end in itertools.pairwise(edges):
        torch.mm(rows[:, start:end].T, rows[:, start:], out=square[start:end, start:])
        square[end:, start:end] = square[start:end, end:].T
    return square


def is_elementwise(module: nn.Module) -> bool:
    """Whether a module's weight and bias scale and shift channels: normalisations."""
    return isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))


def input_width(module: nn.Module) -> int:
    """Columns of `input_rows`."""
    assert isinstance(module.weight, nn.Parameter)
    return 1 if is_elementwise(module) else module.weight.flatten(1).shape[1]


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as rows `[rows, in]` with `rows @ weight.flatten(1).T` the layer's output without bias.

    Of a normalisation `[rows, channels]`, normalised, with `rows * weight` its output without bias.

    Raises:
        MixshowError: a grouped convolution, or a kind of module that has no such form.
    """
    if is_elementwise(module):
        normalised = module_operation(module, x, None)
        if isinstance(module, nn.GroupNorm):
            return normalised.movedim(1, -1).flatten(0, -2)
        return normalised.flatten(-len(module.normalized_shape)).flatten(0, -2)  # type: ignore[arg-type]
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    if isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros":
        if module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding == (0, 0):
            return x.movedim(1, -1).reshape(-1, x.shape[1])
        patches = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)  # type: ignore[arg-type]
        return patches.transpose(1, 2).flatten(0, 1)
    raise MixshowError(
        f"modules of kind {type(module).__name__} cannot be fused; Linear, ungrouped Conv2d and "
        "LayerNorm, GroupNorm and RMSNorm can"
    )


def input_parts(module: nn.Module, x: Tensor) -> Iterator[Tensor]:
    """`input_rows`, of convolutions one picture at a time: unfolded inputs are k * k times the input's size."""
    for part in x.split(1) if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1) else (x,):
        yield input_rows(module, part)
