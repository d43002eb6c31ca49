"""Norm: changes of the weight and bias of layer, group and root-mean-square normalisations, trained as they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, precise, weight_of
from mixshow.lycoris.full import check_shape
from mixshow.lycoris.operation import module_operation


class Norm(Algorithm):
    """Change of a normalisation's weight and, where it has one, bias.

    Attributes:
        w_norm: in the weight's shape; `b_norm` in the bias's.
    """

    name = "norm"

    def __init__(self, w_norm: Tensor, b_norm: Tensor | None = None) -> None:
        super().__init__()
        self.w_norm = nn.Parameter(w_norm)
        self.b_norm = None if b_norm is None else nn.Parameter(b_norm)

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return "w_norm" in names

    @classmethod
    def create(cls, module: nn.Module, *, dim: int, alpha: float) -> Self:
        """No change yet. There is no rank: `dim` and `alpha` are not used."""
        weight, bias = _normalising(module), getattr(module, "bias", None)
        return cls(torch.zeros(weight.shape), torch.zeros(bias.shape) if isinstance(bias, Tensor) else None)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        w_norm, b_norm = tensors["w_norm"].float(), tensors.get("b_norm")
        check_shape("w_norm", w_norm, _normalising(module))
        if b_norm is not None:
            check_shape("b_norm", b_norm, getattr(module, "bias", None))
        return cls(w_norm, None if b_norm is None else b_norm.float())

    def tensors(self) -> dict[str, Tensor]:
        return {"w_norm": self.w_norm} if self.b_norm is None else {"w_norm": self.w_norm, "b_norm": self.b_norm}

    def delta(self, weight: Tensor) -> Tensor:
        return self.w_norm.to(precise(self.w_norm))

    def bias_delta(self) -> Tensor | None:
        return None if self.b_norm is None else self.b_norm.to(precise(self.b_norm))

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        return True

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        mask = self.rank_mask(self.w_norm.numel(), self.w_norm)
        mask = None if mask is None else mask.reshape(self.w_norm.shape)
        changes = (None if p is None else (p if mask is None else p * mask) for p in (self.w_norm, self.b_norm))
        weight, bias = (None if change is None else (multiplier * change).to(x.dtype) for change in changes)
        return module_operation(module, x, weight, bias)

    def shrink(self, ratio: float) -> None:
        for parameter in self.parameters():
            parameter.mul_(ratio)


def _normalising(module: nn.Module) -> Tensor:
    """The weight of a normalisation."""
    if not isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
        raise MixshowError(f"expected a LayerNorm, GroupNorm or RMSNorm with a weight, found {type(module).__name__}")
    return weight_of(module)
