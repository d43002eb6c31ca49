"""LoHa: the element-wise product of two low-rank matrices, `s * (a1 b1) * (a2 b2)`, s = alpha / r, of rank up to r * r.

Hyeon-Woo et al. 2021 (FedPara, arXiv 2108.06098); Yeh et al. 2023 (LyCORIS, arXiv 2309.14859). With Tucker kernels the
right factors of a convolution are `t[i, j, ...] b[j, c]`.

The product is a low-rank matrix itself: its factors are the products of all pairs of columns of a1, a2 and of rows of
b1, b2 (Khatri-Rao). Where r * r is small, activations go through those.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, precise, read_alpha, scale_tensor, weight_of
from mixshow.lycoris.layer import MOVE, RANK_STABILISED, check_rank, fits, matrix_of
from mixshow.lycoris.low_rank import low_rank_change, weight_is_cheaper
from mixshow.lycoris.magnitude import MAGNITUDE_OPTIONS, Magnitude

_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")


class LoHa(Algorithm):
    """Hadamard product change of a linear layer or a convolution, grouped or not."""

    name = "loha"
    options: ClassVar[Mapping[str, str]] = {
        "use_tucker": "kernels larger than 1 get a core of their own",
        "use_scalar": "train one more factor, from 0, in place of a left part that starts at 0",
        **RANK_STABILISED,
        **MAGNITUDE_OPTIONS,
    }

    def __init__(
        self,
        factors: Mapping[str, Tensor],
        shape: tuple[int, ...],
        alpha: float,
        *,
        scalar: Tensor | None = None,
        magnitude: Magnitude | None = None,
    ) -> None:
        """
        Args:
            factors: by their names in files: `a [out, r]`, `b [r, in * kernel]`; with cores `t [r, r, *kernel]`
                `a [r, out]`, `b [r, in]`.
            shape: of the weight, `[out, in / groups, *kernel]`.
            alpha: as files have it, so that the scale is alpha / r.
            scalar: further trained factor; written into `hada_w1_a`.
        """
        super().__init__()
        self.factors = nn.ParameterDict({name: nn.Parameter(factor) for name, factor in factors.items()})
        self.shape, self.alpha = tuple(shape), float(alpha)
        self.scalar = None if scalar is None else nn.Parameter(scalar)
        self.magnitude = magnitude

    @property
    def tucker(self) -> bool:
        return "hada_t1" in self.factors

    @property
    def rank(self) -> int:
        return self.factors["hada_w1_b"].shape[0]

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return "hada_w1_a" in names

    @classmethod
    def create(
        cls,
        module: nn.Module,
        *,
        dim: int,
        alpha: float,
        use_tucker: bool = False,
        use_scalar: bool = False,
        rs_lora: bool = False,
        weight_decompose: bool = False,
        wd_on_out: bool = True,
    ) -> Self:
        weight = matrix_of(module)
        (out, inside), kernel = weight.shape[:2], weight.shape[2:]
        tucker = use_tucker and math.prod(kernel) > 1
        check_rank(weight, dim, min(out, inside if tucker else inside * math.prod(kernel)))
        left, right = ((dim, out), (dim, inside)) if tucker else ((out, dim), (dim, inside * math.prod(kernel)))
        factors = {name: torch.randn(left if name.endswith("a") else right) for name in _FACTORS}
        factors["hada_w1_a"] *= 0.1
        factors["hada_w2_a"] *= 0.1 if use_scalar else 0.0
        if tucker:
            factors |= {name: 0.1 * torch.randn(dim, dim, *kernel) for name in _CORES}
        return cls(
            factors,
            weight.shape,
            alpha * math.sqrt(dim) if rs_lora else alpha,
            scalar=torch.zeros(()) if use_scalar else None,
            magnitude=Magnitude.create(weight, on_output=wd_on_out) if weight_decompose else None,
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        weight = matrix_of(module)
        (out, inside), kernel = weight.shape[:2], weight.shape[2:]
        names = _FACTORS + _CORES if "hada_t1" in tensors or "hada_t2" in tensors else _FACTORS
        found = {name: tensors[name].float() for name in names}
        rank = next(iter(found["hada_w1_b"].shape), 0)
        a, b, t = (out, rank), (rank, inside * math.prod(kernel)), (rank, rank, *kernel)
        if names is not _FACTORS:
            a, b = (rank, out), (rank, inside)
        shapes = dict(zip(_FACTORS + _CORES, (a, b, a, b, t, t)))
        if not all(fits(factor, shapes[name]) for name, factor in found.items()):
            listed = ", ".join(f"{name} {list(factor.shape)}" for name, factor in found.items())
            raise MixshowError(
                f"expected factors for a weight of shape {list(weight.shape)}, found {listed}; the file was made for a "
                "base of other widths"
            )
        return cls(
            {name: factor.reshape(shapes[name]) for name, factor in found.items()},
            weight.shape,
            read_alpha(tensors, rank),
            magnitude=Magnitude.from_tensor(tensors["dora_scale"], weight) if "dora_scale" in tensors else None,
        )

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {"alpha": scale_tensor(self.alpha)}
        if self.magnitude is not None:
            found["dora_scale"] = self.magnitude.scale
        found |= {name: self.factors[name] for name in _FACTORS + _CORES if name in self.factors}
        if self.scalar is not None:
            found["hada_w1_a"] = found["hada_w1_a"] * self.scalar
        return found

    def _halves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`a1 [out, r]` with all scales, `b1 [r, in * kernel]`, and `a2`, `b2` likewise; cores are in the b."""
        a1, b1, a2, b2 = (self.factors[name].to(precise(self.factors[name])) for name in _FACTORS)
        if self.tucker:
            t1, t2 = (self.factors[name].to(b1.dtype) for name in _CORES)
            b1, b2 = (torch.einsum("ij...,jc->ic...", t, b).flatten(1) for t, b in ((t1, b1), (t2, b2)))
            a1, a2 = a1.T, a2.T
        a1 = a1 * (self.alpha / self.rank)
        return (a1 if self.scalar is None else a1 * self.scalar), b1, a2, b2

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """The Khatri-Rao factors `[out, r * r]` and `[r * r, in * kernel]`."""
        a1, b1, a2, b2 = self._halves()
        return (a1[:, :, None] * a2[:, None]).flatten(1), (b1[:, None] * b2).flatten(0, 1)

    def delta(self, weight: Tensor) -> Tensor:
        a1, b1, a2, b2 = self._halves()
        change = ((a1 @ b1) * (a2 @ b2)).reshape(self.shape)
        return change if self.magnitude is None else self.magnitude.delta(weight, change)

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        return None if self.magnitude is not None else self._pairs()

    def _per_position(self, module: nn.Module) -> int:
        """Multiplications of the change through the Khatri-Rao factors, for one position of the output."""
        inside = getattr(module, "groups", 1) * math.prod(self.shape[1:])
        return self.rank**2 * (inside + self.shape[0] + MOVE) + MOVE * self.shape[0]

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        weight = weight_of(module)
        build = (2 * self.rank + 2 * MOVE) * weight.numel()
        return self.magnitude is not None or weight_is_cheaper(weight, positions, self._per_position(module), build)

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        if self.magnitude is not None or self._per_position(module) >= math.prod(self.shape):
            return super().forward_change(x, module, multiplier, base_output)
        up, down = self._pairs()
        mask = self.rank_mask(self.shape[0], up)  # of output channels, as where the delta is formed
        up = up * multiplier if mask is None else up * multiplier * mask[:, None]
        return low_rank_change(module, x, up, down.unflatten(1, self.shape[1:]))

    def regularised_norm(self, weight: Tensor) -> float:
        a1, b1, a2, b2 = self._halves()
        return float(((a1 @ b1) * (a2 @ b2)).norm().detach())

    def shrink(self, ratio: float) -> None:
        self.factors["hada_w1_a"].mul_(ratio)
