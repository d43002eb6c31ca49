"""What solving asks of moments, however they are held: sums, products with rows, and what rows make of the inputs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.fusion.half import HalfMoment, half_of_square, half_times, unpacked
from mixshow.fusion.statistics import LayerInputs
from mixshow.fusion.statistics_file import StoredInputs
from mixshow.fusion.wide import KeptRows

_PIECE = 1 << 20  # numbers that are converted at a time


def opened(inputs: LayerInputs) -> LayerInputs:
    """The inputs, read where they are in a file."""
    return inputs.load(inputs.device) if isinstance(inputs, StoredInputs) else inputs


def device_of(inputs: LayerInputs) -> torch.device:
    """Where their moment is, or would be read to."""
    if isinstance(inputs, StoredInputs):
        return torch.device(inputs.device)
    return inputs.half.device if isinstance(inputs, HalfMoment) else inputs.moment.device


class WeightedSum:
    """`sum w G`, halves summed up as such."""

    def __init__(self) -> None:
        self._half: Tensor | None = None
        self._whole: Tensor | None = None

    def add(self, inputs: LayerInputs, weight: float) -> None:
        """One more, of inputs that are opened."""
        if isinstance(inputs, HalfMoment):
            self._half = _added(self._half, inputs.half, weight)
        else:
            self._whole = _added(self._whole, inputs.moment, weight)

    @property
    def value(self) -> Tensor:
        """`[in, in]`, float64; to be asked for at the end."""
        if self._half is None:
            assert self._whole is not None
            return self._whole
        whole = unpacked(self._half)
        return whole if self._whole is None else whole.add_(self._whole)


def _added(total: Tensor | None, values: Tensor, weight: float) -> Tensor:
    if total is None:
        total = torch.zeros(values.shape, dtype=torch.float64, device=values.device)
    for own, part in _pieces(total, values):
        own.add_(part, alpha=weight)
    return total


def _pieces(values: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of two tensors of one size, the second's in the first's precision."""
    parts = zip(values.view(-1).split(_PIECE), others.reshape(-1).split(_PIECE), strict=True)
    return ((own, part.to(own)) for own, part in parts)


def times(rows: Tensor, inputs: LayerInputs) -> Tensor:
    """`rows @ G` for rows `[any, in]` and inputs that are opened."""
    return half_times(rows, inputs.half) if isinstance(inputs, HalfMoment) else rows @ inputs.moment


class Squares:
    """What rows R `[any, in]` make of inputs, `tr(R G R^T)`, for one moment G after the other.

    It is the sum of `R^T R` times G, element by element. So each further moment takes no product but one pass.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    @cached_property
    def _whole(self) -> Tensor:
        return self._rows.mT @ self._rows

    @cached_property
    def _half(self) -> Tensor:
        return half_of_square(self._rows)

    def of(self, inputs: LayerInputs) -> float:
        """Of inputs that are opened."""
        if isinstance(inputs, HalfMoment):
            return float(torch.stack([torch.dot(*parts) for parts in _pieces(self._half, inputs.half)]).sum())
        return float((self._whole * inputs.moment).sum())


def refuse_negative(name: str, inputs: LayerInputs) -> None:
    """Look at opened inputs' mean squares, which are few.

    Args:
        name: of a layer that reads them, for messages.

    Raises:
        MixshowError: some are negative.
    """
    if bool((_squares(inputs) < 0).any()):
        raise _damaged(name, "negative squares")


def refuse_no_numbers(name: str, inputs: LayerInputs) -> None:
    """Look through what was just recorded.

    Raises:
        MixshowError: some are no numbers.
    """
    if not bool((inputs.kept if isinstance(inputs, KeptRows) else inputs.moment).isfinite().all()):
        raise _damaged(name, "values that are no numbers")


def refuse_sum(name: str, total: Tensor) -> None:
    """Look at a sum of moments. What is no number in one of them is none in their sum, which is looked through once.

    Raises:
        MixshowError: moments that are no numbers.
    """
    if not bool(torch.stack(total.aminmax()).isfinite().all()):
        raise _damaged(name, "values that are no numbers")


def _squares(inputs: LayerInputs) -> Tensor:
    return inputs.diagonal if isinstance(inputs, HalfMoment) else inputs.moment.diagonal(dim1=-2, dim2=-1)


def _damaged(name: str, found: str) -> MixshowError:
    return MixshowError(
        f"'{name}': its inputs' moments hold {found}; the model overflows on these prompts, or the statistics are "
        "damaged; record them again in float32"
    )
