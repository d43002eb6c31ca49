"""LoKr: a Kronecker product `s * kron(w1, w2)`, either factor whole or low-rank; s = alpha / r, 1 where both are whole.

Yeh et al. 2023 (LyCORIS, arXiv 2309.14859); Edalati et al. 2022 (KronA, arXiv 2212.10650). The factors' sizes come from
`factorization` when a network is made, and from the tensors when a file is read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.lycoris.algorithm import Algorithm, read_alpha, scale_tensor, weight_of
from mixshow.lycoris.kronecker import PARTS, KroneckerFactors, kronecker_scale
from mixshow.lycoris.kronecker_forward import cost_per_position, kronecker_change
from mixshow.lycoris.layer import MOVE, RANK_STABILISED, matrix_of
from mixshow.lycoris.low_rank import weight_is_cheaper
from mixshow.lycoris.magnitude import MAGNITUDE_OPTIONS, Magnitude


class LoKr(Algorithm):
    """Kronecker product change of a linear layer or a convolution, grouped or not."""

    name = "lokr"
    options: ClassVar[Mapping[str, str]] = {
        "factor": "width of the smaller factors, where it divides the layer's; -1: near the square root",
        "decompose_both": "the smaller factor is low-rank too, where the rank is below half its width",
        "full_matrix": "no factor is low-rank; a rank of half the larger factor or more means the same for that one",
        "unbalanced_factorization": "the larger part of the output's width goes to the first factor",
        "use_tucker": "low-rank kernels larger than 1 get a core of their own",
        "use_scalar": "train one more factor, from 0, in place of a part that starts at 0",
        **RANK_STABILISED,
        **MAGNITUDE_OPTIONS,
    }

    def __init__(
        self,
        factors: KroneckerFactors,
        alpha: float,
        *,
        scalar: Tensor | None = None,
        magnitude: Magnitude | None = None,
    ) -> None:
        """
        Args:
            alpha: as files have it; without a meaning where both factors are whole.
            scalar: further trained factor; written into w1.
        """
        super().__init__()
        self.factors, self.alpha = factors, float(alpha)
        self.scalar = None if scalar is None else nn.Parameter(scalar)
        self.magnitude = magnitude

    @property
    def scale(self) -> float | Tensor:
        """All scales together, the trained one among them."""
        return kronecker_scale(self.alpha, self.factors.rank, self.scalar)

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return "lokr_w1" in names or "lokr_w1_a" in names

    @classmethod
    def create(
        cls,
        module: nn.Module,
        *,
        dim: int,
        alpha: float,
        factor: int = -1,
        decompose_both: bool = False,
        full_matrix: bool = False,
        unbalanced_factorization: bool = False,
        use_tucker: bool = False,
        use_scalar: bool = False,
        rs_lora: bool = False,
        weight_decompose: bool = False,
        wd_on_out: bool = True,
    ) -> Self:
        weight = matrix_of(module)
        factors = KroneckerFactors.create(
            weight.shape,
            dim=dim,
            factor=factor,
            decompose_both=decompose_both,
            full_matrix=full_matrix,
            unbalanced=unbalanced_factorization,
            use_tucker=use_tucker,
            zero=not use_scalar,
        )
        alpha = dim if factors.rank is None else alpha * math.sqrt(dim) if rs_lora else alpha
        return cls(
            factors,
            alpha,
            scalar=torch.zeros(()) if use_scalar else None,
            magnitude=Magnitude.create(weight, on_output=wd_on_out) if weight_decompose else None,
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        weight = matrix_of(module)
        found = {part: tensors[f"lokr_{part}"].float() for part in PARTS if f"lokr_{part}" in tensors}
        factors = KroneckerFactors(found, weight.shape)
        return cls(
            factors,
            _meaningless_alpha(tensors) if factors.rank is None else read_alpha(tensors, factors.rank),
            magnitude=Magnitude.from_tensor(tensors["dora_scale"], weight) if "dora_scale" in tensors else None,
        )

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {"alpha": scale_tensor(self.alpha)}
        if self.magnitude is not None:
            found["dora_scale"] = self.magnitude.scale
        found |= self.factors.tensors("lokr_", 1.0 if self.scalar is None else self.scalar)
        return found

    def delta(self, weight: Tensor) -> Tensor:
        change = self.factors.product(self.scale)
        return change if self.magnitude is None else self.magnitude.delta(weight, change)

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        factors = None if self.magnitude is not None else self.factors.low_rank()
        return None if factors is None else (factors[0] * self.scale, factors[1])

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        weight = weight_of(module)
        if self._forms_delta(module):
            return True
        return weight_is_cheaper(weight, positions, cost_per_position(self.factors), MOVE * weight.numel())

    def _forms_delta(self, module: nn.Module) -> bool:
        """Whether the factors cannot, or not more cheaply, act on activations."""
        several = self.magnitude is not None or getattr(module, "groups", 1) > 1
        return several or cost_per_position(self.factors) >= math.prod(self.factors.shape)

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        if self._forms_delta(module):
            return super().forward_change(x, module, multiplier, base_output)
        change = kronecker_change(self.factors, module, x, multiplier * self.scale)
        mask = self.rank_mask(self.factors.shape[0], change)  # of output channels, as where the delta is formed
        if mask is None:
            return change
        return change * mask.to(change.dtype).reshape(-1, *[1] * (len(self.factors.shape) - 2))

    def regularised_norm(self, weight: Tensor) -> float:
        norm = self.factors.left().norm() * self.factors.right().norm()
        return float((norm * abs(self.scale)).detach())

    def shrink(self, ratio: float) -> None:
        self.factors.shrink(ratio)


def _meaningless_alpha(tensors: Mapping[str, Tensor]) -> float:
    """The alpha of a file whose factors are whole: kept if it is a number; 16-bit files may have infinity there."""
    alpha = float(tensors["alpha"].flatten()[0]) if "alpha" in tensors else math.inf
    return alpha if math.isfinite(alpha) else 1.0
