"""Full: the weight's own change, and the bias's, trained as they are (native fine-tuning, kept apart from the base)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, precise
from mixshow.lycoris.layer import matrix_of


class Full(Algorithm):
    """Unrestricted change of a linear layer or convolution.

    Attributes:
        diff: in the weight's shape.
        diff_b: in the bias's shape, where there is one.
    """

    name = "full"

    def __init__(self, diff: Tensor, diff_b: Tensor | None = None) -> None:
        super().__init__()
        self.diff = nn.Parameter(diff)
        self.diff_b = None if diff_b is None else nn.Parameter(diff_b)

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return "diff" in names

    @classmethod
    def create(cls, module: nn.Module, *, dim: int, alpha: float) -> Self:
        """No change yet. There is no rank: `dim` and `alpha` are not used."""
        weight, bias = matrix_of(module), module.bias
        return cls(torch.zeros(weight.shape), torch.zeros(bias.shape) if isinstance(bias, Tensor) else None)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        diff, diff_b = tensors["diff"].float(), tensors.get("diff_b")
        check_shape("diff", diff, matrix_of(module))
        if diff_b is not None:
            check_shape("diff_b", diff_b, module.bias)
        return cls(diff, None if diff_b is None else diff_b.float())

    def tensors(self) -> dict[str, Tensor]:
        return {"diff": self.diff} if self.diff_b is None else {"diff": self.diff, "diff_b": self.diff_b}

    def delta(self, weight: Tensor) -> Tensor:
        return self.diff.to(precise(self.diff))

    def bias_delta(self) -> Tensor | None:
        return None if self.diff_b is None else self.diff_b.to(precise(self.diff_b))

    def shrink(self, ratio: float) -> None:
        for parameter in self.parameters():
            parameter.mul_(ratio)


def check_shape(name: str, found: Tensor, changed: object) -> None:
    """Refuse a change of another shape than what it changes.

    Raises:
        MixshowError: they differ, or the module has nothing to change.
    """
    if not isinstance(changed, Tensor):
        raise MixshowError(f"{name}: changes a bias, and the module has none; the file was made for another base")
    if found.shape != changed.shape:
        raise MixshowError(
            f"{name}: expected a tensor {list(changed.shape)}, found {list(found.shape)}; the file was made for a base "
            "of other widths"
        )
