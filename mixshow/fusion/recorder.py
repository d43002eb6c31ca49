"""Records the moments of layer inputs while a model runs; layers that read the very same tensor share one."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Collection, Iterator, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.fusion.statistics import (
    DOUBLE_RESOLUTION,
    SINGLE_RESOLUTION,
    LayerStatistics,
    input_parts,
    input_width,
    is_elementwise,
    second_moment,
)
from mixshow.fusion.wide import KeptRows, RowSampling


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
