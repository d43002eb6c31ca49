"""Numbers that LyCORIS 4.1.3 gives for parameters made of sines, and the modules and parameters they belong to.

Flat element e of the base weight is 0.3 sin(0.37 e + 0.5), of parameter number t in the order listed
0.5 sin(0.7 e + 1.3 t + 0.3), of `dora_scale` 1 more than that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from mixshow.lycoris.algorithm import Algorithm


@dataclasses.dataclass(frozen=True)
class Golden:
    """One row: parameters by name and shape; norm, sum and three entries of the delta, its norm at multiplier 0.5."""

    shapes: Mapping[str, tuple[int, ...]]
    alpha: float
    numbers: tuple[float, float, float, float, float, float]
    convolution: bool = False

    def module(self) -> nn.Module:
        """Linear(12, 20) or Conv2d(12, 20, 3), without bias, in float64."""
        module: nn.Module = nn.Conv2d(12, 20, 3, bias=False) if self.convolution else nn.Linear(12, 20, bias=False)
        module = module.double().requires_grad_(False)
        weight = module.weight
        assert isinstance(weight, Tensor)
        steps = torch.arange(weight.numel(), dtype=torch.float64)
        weight.copy_((0.3 * torch.sin(0.37 * steps + 0.5)).reshape(weight.shape))
        return module

    def tensors(self) -> dict[str, Tensor]:
        """The parameters as a file of float64 tensors would have them."""
        found = {"alpha": torch.tensor(self.alpha)}
        for t, (name, shape) in enumerate(self.shapes.items()):
            steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
            values = (0.5 * torch.sin(0.7 * steps + 1.3 * t + 0.3)).reshape(shape)
            found[name] = values + 1 if name == "dora_scale" else values
        return found

    def check(self, kind: type[Algorithm]) -> None:
        """Read the tensors and compare; files hold float32, which bounds the agreement."""
        module = self.module()
        weight = module.weight
        assert isinstance(weight, Tensor)
        algorithm = kind.from_tensors(self.tensors(), module)
        with torch.no_grad():
            delta = algorithm.delta(weight).flatten(1)
            half = algorithm.change_at(weight, 0.5)
        found = (delta.norm(), delta.sum(), delta[0, 0], delta[7, 5], delta[19, -1], half.norm())
        scale = float(delta.abs().max())
        for number, expected in zip(found, self.numbers):
            rounding = 2e-6 * scale * (delta.numel() ** 0.5 if number is found[1] else 1.0)  # terms of the sum cancel
            assert float(number) == pytest.approx(expected, rel=2e-5, abs=rounding)
