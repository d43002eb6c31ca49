"""Second moments of layer inputs: all that fusion keeps of what flows through a model.

A layer's statistics have the size of its input width, whatever the number of prompts, steps or positions. Where a bias
changes too, the input is extended by a constant 1, for which the bias is one more column of the weight. A
normalisation scales and shifts every channel by itself, so its statistics are one small moment per channel, of the
normalised input.
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.fusion.wide import KeptRows, RowSampling
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


def geometry_of(name: str, module: nn.Module, extended: bool) -> tuple[object, ...]:
    """What tells whether two layers that read the same tensor have the same rows."""
    if isinstance(module, nn.Conv2d):
        return ("conv", extended, module.kernel_size, module.stride, module.padding, module.dilation)
    return ("norm", name) if is_elementwise(module) else ("linear", extended)


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What a layer read, by which layers that read the very same are told; the tensor itself is not kept."""

    tensor: weakref.ref[Tensor]
    version: int
    geometry: tuple[object, ...]

    @classmethod
    def of(cls, x: Tensor, geometry: tuple[object, ...]) -> Self:
        """Of an input, with `geometry_of` its layer."""
        return cls(weakref.ref(x), _version(x), geometry)

    def same_as(self, x: Tensor, geometry: tuple[object, ...]) -> bool:
        """Whether another layer's input is this one, and unchanged since."""
        return self.tensor() is x and self.version == _version(x) and self.geometry == geometry


class _Accumulator:
    """One running moment, shared by all layers that read the very same inputs.

    The product of the latest call waits until the next one: a layer that turns out to read something else can then
    still leave with the sum of what was common.
    """

    def __init__(self, moment: Tensor | None = None, rows: int = 0) -> None:
        self.moment, self.rows = moment, rows
        self.latest: Reading | None = None
        self._waiting: tuple[Tensor, int] | None = None

    def put(self, product: Tensor, rows: int, latest: Reading) -> None:
        self.settle()
        self._waiting, self.latest = (product, rows), latest

    def settle(self) -> None:
        if self._waiting is not None:
            product, rows = self._waiting
            self.moment = product.double() if self.moment is None else self.moment.add_(product)
            self.rows, self._waiting = self.rows + rows, None

    def without_latest(self) -> _Accumulator:
        return _Accumulator(None if self.moment is None else self.moment.clone(), self.rows)


class StatisticsRecorder:
    """Records the inputs of chosen modules while the block runs; takes its hooks off again, also after an error.

    Layers that read the very same tensor (queries, keys and values of self-attention) share one moment.

    Args:
        modules: by canonical path.
        extended: paths of modules whose inputs are extended by a constant 1.
        double: products in float64 too (for text features, whose directions differ by little).
        sampling: of the rows of wide inputs, whose moments would be larger; None: moments of all.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> with StatisticsRecorder({"layer": layer}) as recorder:
        ...     _ = layer(torch.ones(5, 2))
        >>> recorder.statistics()["layer"].mean.tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        extended: Collection[str] = (),
        double: bool = False,
        sampling: RowSampling | None = None,
    ) -> None:
        self._modules = dict(modules)
        self._extended = frozenset(extended)
        self._double = double
        widths = {name: input_width(module) + (name in self._extended) for name, module in modules.items()}
        self._samplers = {} if sampling is None else sampling.samplers(widths)
        self._accumulators: dict[str, _Accumulator] = {}
        self._previous: _Accumulator | None = None
        self._attachment = Attachment()

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._attachment.add_hook(module.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        self._attachment.detach()
        self._previous = None

    def _hook(self, name: str):  # type: ignore[no-untyped-def]
        def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._record(name, module, arguments[0].detach() if arguments[0].requires_grad else arguments[0])

        return record

    def _record(self, name: str, module: nn.Module, x: Tensor) -> None:
        if name in self._samplers:
            for part in self._parts(module, x, name in self._extended):
                self._samplers[name].put(part)
            return
        own = self._accumulators.get(name)
        previous, geometry = self._previous, geometry_of(name, module, name in self._extended)
        if previous is not None and previous.latest is not None and previous.latest.same_as(x, geometry):
            if own is None:  # first call: read what the layer before us read
                self._accumulators[name] = own = previous
            if own is previous:
                return
        if own is None:
            own = _Accumulator()
        elif (
            any(other is own for key, other in self._accumulators.items() if key != name)
            and _leader(self._accumulators, own) != name
        ):
            own = own.without_latest()  # read the same until now, and something else from here on
        self._accumulators[name] = own
        product, rows = self._product(module, x, name in self._extended)
        own.put(product, rows, Reading.of(x, geometry))
        self._previous = own

    @torch.no_grad()
    def _product(self, module: nn.Module, x: Tensor, extended: bool) -> tuple[Tensor, int]:
        product, count = None, 0
        for rows in self._parts(module, x):
            square = second_moment(rows, elementwise=is_elementwise(module), extended=extended)
            product = square if product is None else product.double().add_(square)  # sums are taken in float64
            count += rows.shape[0]
        assert product is not None
        return product, count

    def _parts(self, module: nn.Module, x: Tensor, extended: bool = False) -> Iterator[Tensor]:
        for rows in input_parts(module, x.double() if self._double else x.float()):  # never half precision
            yield F.pad(rows, (0, 1), value=1.0) if extended else rows

    def statistics(self) -> dict[str, LayerStatistics | KeptRows]:
        """What was recorded, by module path; layers that share their inputs share one object."""
        resolution = DOUBLE_RESOLUTION if self._double else SINGLE_RESOLUTION
        sampled = {name: each.statistics(SINGLE_RESOLUTION) for name, each in self._samplers.items() if each.rows}
        shared: dict[int, LayerStatistics] = {}
        for accumulator in self._accumulators.values():
            if id(accumulator) not in shared:
                accumulator.settle()
                assert accumulator.moment is not None
                shared[id(accumulator)] = LayerStatistics(accumulator.moment, accumulator.rows, resolution)
        return {name: shared[id(accumulator)] for name, accumulator in self._accumulators.items()} | sampled


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _leader(accumulators: Mapping[str, _Accumulator], shared: _Accumulator) -> str:
    """The layer that was there first of those sharing an accumulator."""
    return next(name for name, accumulator in accumulators.items() if accumulator is shared)
