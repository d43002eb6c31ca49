"""(IA)^3: one factor per output channel, or per input channel, `W' = W * (1 + w)`. The bias is not scaled.

Liu et al. 2022 (arXiv 2205.05638).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, computed_in, precise, weight_of
from mixshow.lycoris.layer import matrix_of
from mixshow.lycoris.operation import module_operation


class IA3(Algorithm):
    """Channel-wise scaling of a linear layer or a convolution, grouped or not.

    Attributes:
        weight: w; `[channels]` for a linear layer, `[1, channels, 1, ...]` for a convolution.
        on_input: the channels are the input's.
    """

    name = "ia3"
    options: ClassVar[Mapping[str, str]] = {"train_on_input": "scale the input's channels in place of the output's"}

    def __init__(self, weight: Tensor, *, on_input: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.on_input = on_input

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return "on_input" in names

    @classmethod
    def create(cls, module: nn.Module, *, dim: int, alpha: float, train_on_input: bool = False) -> Self:
        """Factors of 1.

        Args:
            dim: not used, nor is `alpha`: there is no rank.
            train_on_input: scale the input's channels.
        """
        return cls(torch.zeros(_shape(module, train_on_input)), on_input=train_on_input)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        weight, on_input = tensors["weight"], bool(tensors["on_input"].flatten()[0])
        shape = _shape(module, on_input)
        if weight.numel() != max(shape):
            raise MixshowError(
                f"expected factors {list(shape)} on the {'input' if on_input else 'output'} of a weight "
                f"{list(weight_of(module).shape)}, found {list(weight.shape)}; the file was made for a base of other "
                "widths"
            )
        return cls(weight.float().reshape(shape), on_input=on_input)

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "on_input": torch.tensor(int(self.on_input))}

    def delta(self, weight: Tensor) -> Tensor:
        dtype = precise(weight, self.weight)
        factors, points = self.weight.flatten().to(dtype), [1] * (weight.dim() - 2)
        if not self.on_input:
            return weight.to(dtype) * factors.reshape(-1, 1, *points)
        by_group = factors.reshape(-1, weight.shape[1])  # one row per group of a convolution
        rows = by_group.repeat_interleave(weight.shape[0] // len(by_group), dim=0)
        return weight.to(dtype) * rows.reshape(*rows.shape, *points)

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        return True

    def forward_whole(self, x: Tensor, module: nn.Module, multiplier: float) -> Tensor:
        """Scales activations; no weight is formed."""
        factors, bias = 1 + multiplier * self._spread(module), module.bias
        if self.on_input:
            return module_operation(module, x * factors, weight_of(module), bias)  # type: ignore[arg-type]
        output = module_operation(module, x, weight_of(module))
        if bias is None:
            return output * factors
        return torch.addcmul(bias.reshape(factors.shape), output, factors)  # type: ignore[operator]

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        factors, bias = multiplier * self._spread(module), module.bias
        mask = self.rank_mask(self.weight.numel(), self.weight)
        factors = factors if mask is None else factors * mask.reshape(factors.shape)
        x, weight = computed_in(x), weight_of(module)
        if self.on_input:
            return module_operation(module, x * factors.to(x.dtype), weight.to(x.dtype))
        if base_output is None:
            base_output = module_operation(module, x, weight.to(x.dtype))
        elif bias is not None:
            base_output = base_output - bias.reshape(factors.shape).to(base_output.dtype)  # type: ignore[operator]
        return base_output * factors.to(base_output.dtype)

    def _spread(self, module: nn.Module) -> Tensor:
        """The factors in the shape of activations: channels last for a linear layer, else before the space."""
        return self.weight.flatten().reshape(-1, *[1] * (weight_of(module).dim() - 2))

    def shrink(self, ratio: float) -> None:
        self.weight.mul_(ratio)


def _shape(module: nn.Module, on_input: bool) -> tuple[int, ...]:
    weight = matrix_of(module)
    channels = weight.shape[1] * int(getattr(module, "groups", 1)) if on_input else weight.shape[0]
    return (channels,) if weight.dim() == 2 else (1, channels, *[1] * (weight.dim() - 2))
