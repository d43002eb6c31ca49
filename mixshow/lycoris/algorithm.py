"""What every algorithm has in common: a subclass supplies parameters and its delta, the rest follows.

A delta has the shape of the module's weight. Adapters never own or change the module they adapt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.errors import MixshowError


class Algorithm(nn.Module, ABC):
    """A parametrised weight change of one linear or convolutional module."""

    name: ClassVar[str]  # as options spell it
    detects: ClassVar[str]  # the tensor whose presence in a file tells this algorithm

    @classmethod
    @abstractmethod
    def create(cls, module: nn.Module, *, dim: int, alpha: float) -> Self:
        """Fresh parameters for a module, the delta being zero.

        Args:
            dim: rank.
            alpha: the delta is scaled by alpha / rank.
        """

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        """From a file's tensors (without the module's name in front).

        Raises:
            MixshowError: the tensors do not fit the module.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors a file holds, in the order they are written."""

    @abstractmethod
    def delta(self) -> Tensor:
        """The weight change, at least float32, in the shape of the module's weight."""

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """`(up [out, r], down [r, in])` with `up @ down` the delta flattened to two axes, where one exists."""
        return None

    def apply(self, x: Tensor, module: nn.Module) -> Tensor:  # type: ignore[override]
        """The delta's part of the module's output for input `x`; subclasses may override it with something cheaper."""
        return module_operation(module, x, self.delta().to(x.dtype))


def module_operation(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What the module does with its weight (without bias), done with another weight of that shape."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight)
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros":
            raise MixshowError(f"convolutions with padding mode '{module.padding_mode}' cannot carry a network")
        return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation, module.groups)
    raise MixshowError(f"modules of kind {type(module).__name__} cannot carry a network; Linear and Conv2d can")
