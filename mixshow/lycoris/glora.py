"""GLoRA: a change that maps the weight and adds to it, both of low rank, `W' = W + s (W a1 a2 + b1 b2)`, s = alpha / r.

Chavan et al. 2023 (arXiv 2306.07967), in the form of LyCORIS: W meets a1 on its input channels. The delta depends on W.
With `W a1` taken once per call it is one low-rank change of rank 2 r; alone on a convolution with a kernel, it changes
the layer's input. PEFT's method of that name is another one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import (
    Algorithm,
    computed_in,
    precise,
    read_alpha,
    scale_tensor,
    weight_of,
)
from mixshow.lycoris.layer import RANK_STABILISED, check_rank, fits, matrix_of, pointwise
from mixshow.lycoris.low_rank import low_rank_change, weight_is_cheaper
from mixshow.lycoris.operation import module_operation, output_positions, rebuilt_operation

_FACTORS = ("a1", "a2", "b1", "b2")


class GLoRA(Algorithm):
    """Generalised low-rank change of a linear layer or a convolution, grouped or not."""

    name = "glora"
    options: ClassVar[Mapping[str, str]] = {
        "use_scalar": "train one more factor, from 0, in place of parts that start at 0",
        **RANK_STABILISED,
    }

    def __init__(
        self, a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor, alpha: float, scalar: Tensor | None = None
    ) -> None:
        """
        Args:
            a1: `[in / groups, r]`.
            a2: `[r, in / groups]`.
            b1: `[out, r]`.
            b2: `[r, in / groups, *kernel]`.
            alpha: as files have it, so that the scale is alpha / r.
            scalar: further trained factor; written into a2 and b2.
        """
        super().__init__()
        self.a1, self.a2, self.b1, self.b2 = (nn.Parameter(factor) for factor in (a1, a2, b1, b2))
        self.alpha = float(alpha)
        self.scalar = None if scalar is None else nn.Parameter(scalar)

    @property
    def rank(self) -> int:
        return self.b2.shape[0]

    @property
    def _scale(self) -> float | Tensor:
        """All scales together, the trained one among them."""
        return self.alpha / self.rank * (1.0 if self.scalar is None else self.scalar)

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return "a1.weight" in names or "b1.weight" in names

    @classmethod
    def create(
        cls, module: nn.Module, *, dim: int, alpha: float, use_scalar: bool = False, rs_lora: bool = False
    ) -> Self:
        weight = matrix_of(module)
        out, inside, *kernel = weight.shape
        check_rank(weight, dim, min(out, inside))
        shapes = (inside, dim), (dim, inside), (out, dim), (dim, inside, *kernel)
        a1, a2, b1, b2 = (nn.init.kaiming_uniform_(torch.empty(shape), a=math.sqrt(5)) for shape in shapes)
        if not use_scalar:
            a2.zero_()
            b2.zero_()
        scalar = torch.zeros(()) if use_scalar else None
        return cls(a1, a2, b1, b2, alpha * math.sqrt(dim) if rs_lora else alpha, scalar)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        weight = matrix_of(module)
        out, inside, *kernel = weight.shape
        a1, a2, b1, b2 = (tensors[f"{name}.weight"].float() for name in _FACTORS)
        if "bm.weight" in tensors:  # a core between b1 and b2, which is their product's with b2
            core = tensors["bm.weight"].float()
            b2 = torch.einsum("ij...,jc->ic...", core, b2.flatten(1))
        rank = next(iter(b2.shape), 0)
        shapes = (inside, rank), (rank, inside), (out, rank), (rank, inside, *kernel)
        if not all(fits(factor, shape) for factor, shape in zip((a1, a2, b1, b2), shapes)):
            found = ", ".join(f"{name} {list(tensors[f'{name}.weight'].shape)}" for name in _FACTORS)
            raise MixshowError(
                f"expected factors for a weight of shape {list(weight.shape)}, found {found}; the file was made for a "
                "base of other widths"
            )
        a1, a2, b1, b2 = (factor.reshape(shape) for factor, shape in zip((a1, a2, b1, b2), shapes))
        return cls(a1, a2, b1, b2, read_alpha(tensors, rank))

    def tensors(self) -> dict[str, Tensor]:
        points = [1] * (self.b2.dim() - 2)
        scalar = 1.0 if self.scalar is None else self.scalar
        a1, a2, b1 = (factor.reshape(*factor.shape, *points) for factor in (self.a1, self.a2, self.b1))
        found = dict(zip(_FACTORS, (a1, a2 * scalar, b1, self.b2 * scalar)))
        return {"alpha": scale_tensor(self.alpha)} | {f"{name}.weight": factor for name, factor in found.items()}

    def _parts(
        self, weight: Tensor, dtype: torch.dtype, masks: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`W a1 [out, r, *kernel]`, `a2`, `b1`, `b2`; all scales and rank dropouts are in a2 and b1.

        Args:
            dtype: of `W a1`; in the weight's own, no copy of the weight is made or kept.
        """
        a2, b1, b2 = (factor.to(precise(factor)) for factor in (self.a2, self.b1, self.b2))
        a2, b1 = a2 * self._scale, b1 * self._scale
        if masks is not None:
            a2, b1 = a2 * masks[0][:, None], b1 * masks[1]
        with torch.autocast(weight.device.type, enabled=False):
            mapped = pointwise(weight.to(dtype), self.a1.T.to(dtype), weight.dim() - 2)
        return mapped, a2, b1, b2

    def _change(self, weight: Tensor, masks: tuple[Tensor, Tensor] | None = None) -> Tensor:
        dtype = precise(weight, self.a1)
        mapped, a2, b1, b2 = self._parts(weight, dtype, masks)
        added = (b1 @ b2.flatten(1)).reshape(weight.shape)
        return pointwise(mapped, a2.T.to(dtype), weight.dim() - 2) + added

    def delta(self, weight: Tensor) -> Tensor:
        return self._change(weight)

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        mapped, a2, b1, b2 = self._parts(weight, precise(weight, self.a1))
        kernel = torch.eye(math.prod(b2.shape[2:])).to(a2)  # the kernel's elements are W's, one channel each
        return torch.cat([mapped.flatten(1), b1], 1), torch.cat([torch.kron(a2, kernel), b2.flatten(1)])

    def _weight_is_cheaper(self, module: nn.Module, positions: int) -> bool:
        weight, (inside, rank), out = weight_of(module), self.a1.shape, self.b1.shape[0]
        per_position = rank * (2 * inside + weight[0].numel() + out)
        return weight_is_cheaper(weight, positions, per_position, 3 * rank * weight.numel())

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        return math.prod(self.b2.shape[2:]) > 1 or self._weight_is_cheaper(module, positions)

    def forward_whole(self, x: Tensor, module: nn.Module, multiplier: float) -> Tensor:
        """For kernels as `W (x + A x) + B x`, without `W A`, where that is cheaper and there are no groups."""
        weight, grouped = weight_of(module), getattr(module, "groups", 1) > 1
        pointed = math.prod(self.b2.shape[2:]) == 1
        if pointed or grouped or self._weight_is_cheaper(module, output_positions(module, x)):
            return super().forward_whole(x, module, multiplier)
        strength = multiplier * self._scale
        a2, b1 = self.a2 * strength, self.b1 * strength
        space = weight.dim() - 2
        changed = x + pointwise(pointwise(x, a2.to(x.dtype), space), self.a1.to(x.dtype), space)
        bias = module.bias
        assert bias is None or isinstance(bias, Tensor)
        return module_operation(module, changed, weight, bias) + low_rank_change(module, x, b1, self.b2)

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        weight = weight_of(module)
        drawn = self.rank_mask(2 * self.rank, weight)
        masks = None if drawn is None else (drawn[: self.rank], drawn[self.rank :])
        if math.prod(self.b2.shape[2:]) > 1 and getattr(module, "groups", 1) > 1:
            read = [*self.parameters(), weight]
            return rebuilt_operation(
                module, computed_in(x), None, lambda: multiplier * self._change(weight, masks), read
            )
        mapped, a2, b1, b2 = self._parts(weight, weight.dtype, masks)
        a2, b1 = a2 * multiplier, b1 * multiplier
        if math.prod(b2.shape[2:]) == 1:
            up, down = torch.cat([mapped.flatten(1).to(b1.dtype), b1], 1), torch.cat([a2.reshape(b2.shape), b2])
            return low_rank_change(module, x, up, down)
        through_weight = module_operation(module, pointwise(x, a2.to(x.dtype), b2.dim() - 2), mapped.to(x.dtype))
        return through_weight + low_rank_change(module, x, b1, b2)

    def shrink(self, ratio: float) -> None:
        self.a2.mul_(ratio)
        self.b2.mul_(ratio)
