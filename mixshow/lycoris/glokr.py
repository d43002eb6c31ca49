"""GLoKr: a change that maps the weight and adds to it, both by Kronecker products, `W' = W + s (W kron(A) + kron(B))`.

This definition is mixshow's own: the name was announced for LyCORIS (Yeh et al. 2023, arXiv 2309.14859), but no formula
was ever published. It is to LoKr what GLoRA (Chavan et al. 2023, arXiv 2306.07967) is to LoRA. `kron(A) [in, in]` and
`kron(B) [out, in, *kernel]` have LoKr's factors; W meets A on its input channels. s = alpha / r, and 1 where no factor
is low-rank. No other program reads these tensors: for them, export the deltas.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, precise, read_alpha, scale_tensor
from mixshow.lycoris.kronecker import PARTS, KroneckerFactors, kronecker_scale
from mixshow.lycoris.kronecker_forward import rows_times
from mixshow.lycoris.layer import RANK_STABILISED, matrix_of


class GLoKr(Algorithm):
    """Generalised Kronecker change of a linear layer or a convolution, grouped or not."""

    name = "glokr"
    options: ClassVar[Mapping[str, str]] = {
        "factor": "width of the smaller factors, where it divides the layer's; -1: near the square root",
        "decompose_both": "the smaller factors are low-rank too, where the rank is below half their width",
        "full_matrix": "no factor is low-rank",
        "use_tucker": "low-rank kernels larger than 1 get a core of their own",
        "use_scalar": "train one more factor, from 0, in place of parts that start at 0",
        **RANK_STABILISED,
    }

    def __init__(
        self, mapping: KroneckerFactors, addition: KroneckerFactors, alpha: float, *, scalar: Tensor | None = None
    ) -> None:
        """
        Args:
            mapping: A, `[in / groups, in / groups]`.
            addition: B, in the shape of the weight.
            alpha: as files have it.
            scalar: further trained factor; written into the w1 of both.

        Raises:
            MixshowError: A and B have different ranks.
        """
        super().__init__()
        self.mapping, self.addition, self.alpha = mapping, addition, float(alpha)
        self.scalar = None if scalar is None else nn.Parameter(scalar)
        ranks = {factors.rank for factors in (mapping, addition)} - {None}
        if len(ranks) > 1:
            raise MixshowError(f"expected Kronecker factors of one rank, found {mapping.rank} and {addition.rank}")
        self.rank: int | None = next(iter(ranks), None)

    @property
    def scale(self) -> float | Tensor:
        """All scales together, the trained one among them."""
        return kronecker_scale(self.alpha, self.rank, self.scalar)

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return any(name.startswith("glokr_") for name in names)

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
        use_tucker: bool = False,
        use_scalar: bool = False,
        rs_lora: bool = False,
    ) -> Self:
        weight = matrix_of(module)
        mapping, addition = (
            KroneckerFactors.create(
                shape,
                dim=dim,
                factor=factor,
                decompose_both=decompose_both,
                full_matrix=full_matrix,
                use_tucker=use_tucker,
                zero=not use_scalar,
            )
            for shape in ((weight.shape[1], weight.shape[1]), weight.shape)
        )
        if rs_lora:
            alpha *= math.sqrt(dim)
        return cls(mapping, addition, alpha, scalar=torch.zeros(()) if use_scalar else None)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        weight = matrix_of(module)
        mapping, addition = (
            KroneckerFactors({p: tensors[prefix + p].float() for p in PARTS if prefix + p in tensors}, shape)
            for prefix, shape in (("glokr_a_", (weight.shape[1], weight.shape[1])), ("glokr_b_", weight.shape))
        )
        return cls(mapping, addition, read_alpha(tensors, mapping.rank or addition.rank or 1))

    def tensors(self) -> dict[str, Tensor]:
        strength = 1.0 if self.scalar is None else self.scalar
        return {
            "alpha": scale_tensor(self.alpha),
            **self.mapping.tensors("glokr_a_", strength),
            **self.addition.tensors("glokr_b_", strength),
        }

    def delta(self, weight: Tensor) -> Tensor:
        mapped = rows_times(weight.to(precise(weight, *self.parameters())).movedim(1, -1), self.mapping)
        return self.scale * (mapped.movedim(-1, 1) + self.addition.product())

    def shrink(self, ratio: float) -> None:
        self.mapping.shrink(ratio)
        self.addition.shrink(ratio)
