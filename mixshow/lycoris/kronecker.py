"""Kronecker factors: `kron(w1, w2)` in the shape of a weight, each factor whole or a low-rank product.

With out = p * k and in = m * n: row i * k + j, column a * n + b of the product is `w1[i, a] * w2[j, b]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import precise
from mixshow.lycoris.factorization import factorization

PARTS = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")  # in the order files hold them, `lokr_` in front
_KINDS = [
    left | right for left in ({"w1"}, {"w1_a", "w1_b"}) for right in ({"w2"}, {"w2_a", "w2_b"}, {"w2_a", "w2_b", "t2"})
]


class KroneckerFactors(nn.Module):
    """Factors of a product in the shape `[out, in, *kernel]`.

    `w1 [p, m]` or `w1_a [p, r]`, `w1_b [r, m]`; `w2 [k, n, *kernel]`, or `w2_a [k, r]`, `w2_b [r, n * kernel]`, or
    (Tucker) `t2 [r, r, *kernel]` between `w2_a [r, k]` and `w2_b [r, n]`.
    """

    def __init__(self, parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
        """
        Args:
            parts: the factors by the names above.
            shape: of the product.

        Raises:
            MixshowError: parts are missing, or their product has another shape.
        """
        super().__init__()
        self.shape = tuple(shape)
        found = ", ".join(f"{name} {list(part.shape)}" for name, part in parts.items())
        expected = _expected_shapes(parts, self.shape)
        if not expected or any(parts[n].flatten(1).shape != (s[0], math.prod(s[1:])) for n, s in expected.items()):
            raise MixshowError(
                f"expected Kronecker factors (w1 or w1_a, w1_b; w2 or w2_a, w2_b) of a weight {list(shape)}, found "
                f"{found}; the file was made for a base of other widths"
            )
        self.parts = nn.ParameterDict({name: parts[name].reshape(expected[name]) for name in PARTS if name in expected})

    @classmethod
    def create(
        cls,
        shape: tuple[int, ...],
        *,
        dim: int,
        factor: int = -1,
        decompose_both: bool = False,
        full_matrix: bool = False,
        unbalanced: bool = False,
        use_tucker: bool = False,
        zero: bool = True,
    ) -> Self:
        """Fresh factors; a factor stays whole where rank `dim` would not make it smaller.

        Args:
            factor: see `factorization`.
            decompose_both: w1 may be low-rank too.
            full_matrix: no factor is low-rank.
            unbalanced: the output's larger factor goes to w1.
            use_tucker: low-rank kernels get a core of their own.
            zero: the product is zero; False: no factor is.
        """
        (p, k), (m, n), kernel = factorization(shape[0], factor), factorization(shape[1], factor), shape[2:]
        if unbalanced:
            p, k = k, p
        sizes: dict[str, tuple[int, ...]] = {"w1": (p, m)}
        if decompose_both and not full_matrix and dim < max(p, m) / 2:
            sizes = {"w1_a": (p, dim), "w1_b": (dim, m)}
        if full_matrix or dim >= max(k, n) / 2:
            sizes["w2"] = (k, n, *kernel)
        elif use_tucker and math.prod(kernel) > 1:
            sizes |= {"w2_a": (dim, k), "w2_b": (dim, n), "t2": (dim, dim, *kernel)}
        else:
            sizes |= {"w2_a": (k, dim), "w2_b": (dim, n * math.prod(kernel))}
        parts = {name: nn.init.kaiming_uniform_(torch.empty(size), a=math.sqrt(5)) for name, size in sizes.items()}
        if zero:
            parts["w2" if "w2" in parts else "w2_b"].zero_()
        return cls(parts, shape)

    @property
    def whole(self) -> bool:
        """Neither factor is low-rank, so that there is no rank to divide a scale by."""
        return "w1" in self.parts and "w2" in self.parts

    @property
    def rank(self) -> int | None:
        """Of the low-rank factors; None where both are whole.

        Raises:
            MixshowError: two low-rank factors of different ranks.
        """
        ranks = {self.parts[name].shape[0] for name in ("w1_b", "w2_b") if name in self.parts}
        if len(ranks) > 1:
            raise MixshowError(f"expected Kronecker factors of one rank, found ranks {sorted(ranks)}")
        return ranks.pop() if ranks else None

    def tensors(self, prefix: str, strength: float | Tensor = 1.0) -> dict[str, Tensor]:
        """The parts by their names in files, a factor of the product being put into w1."""
        found = {prefix + name: self.parts[name] for name in PARTS if name in self.parts}
        first = next(iter(found))
        return found if isinstance(strength, float) else {**found, first: found[first] * strength}

    def shrink(self, ratio: float) -> None:
        """Multiply the product by a ratio, through the parameters."""
        self.parts["w1" if "w1" in self.parts else "w1_a"].mul_(ratio)

    def left(self) -> Tensor:
        """w1 `[p, m]`, at least float32."""
        if "w1" in self.parts:
            return _precise(self.parts["w1"])
        return _precise(self.parts["w1_a"]) @ _precise(self.parts["w1_b"])

    def right(self) -> Tensor:
        """w2 `[k, n, *kernel]`, at least float32."""
        if "w2" in self.parts:
            return _precise(self.parts["w2"])
        up, down = self.right_factors()
        return (up @ down.flatten(1)).unflatten(1, down.shape[1:])

    def right_factors(self) -> tuple[Tensor, Tensor]:
        """Low-rank w2 as `[k, r]` and `[r, n, *kernel]`, at least float32."""
        up, down = _precise(self.parts["w2_a"]), _precise(self.parts["w2_b"])
        if "t2" not in self.parts:
            return up, down.reshape(down.shape[0], -1, *self.shape[2:])
        return up.T, torch.einsum("ij...,jn->in...", _precise(self.parts["t2"]), down)

    def product(self, strength: float | Tensor = 1.0) -> Tensor:
        """`strength * kron(w1, w2)` in its shape, at least float32."""
        return kron(self.left() * strength, self.right().flatten(1)).reshape(self.shape)

    def low_rank(self) -> tuple[Tensor, Tensor] | None:
        """`(up [out, R], down [R, in * kernel])` with the product as theirs; None where w2 is whole.

        `R = min(p, m) * r` from `kron(w1, a b) = kron(w1, a) kron(I, b) = kron(I, a) kron(w1, b)`, or `r * r` where w1
        is low-rank too.
        """
        if "w2" in self.parts:
            return None
        up, down = (factor.flatten(1) for factor in self.right_factors())
        left = self.left()
        if "w1_a" in self.parts and up.shape[1] < min(left.shape):
            return kron(_precise(self.parts["w1_a"]), up), kron(_precise(self.parts["w1_b"]), down)
        if left.shape[0] < left.shape[1]:
            return kron(torch.eye(left.shape[0]).to(left), up), kron(left, down)
        return kron(left, up), kron(torch.eye(left.shape[1]).to(left), down)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """`p, m, k, n`."""
        p, m = _left_shape(self.parts)
        return p, m, self.shape[0] // p, self.shape[1] // m


def _left_shape(parts: Mapping[str, Tensor] | nn.ParameterDict) -> tuple[int, int]:
    return parts["w1" if "w1" in parts else "w1_a"].shape[0], parts["w1" if "w1" in parts else "w1_b"].shape[1]


def kronecker_scale(alpha: float, rank: int | None, scalar: Tensor | None) -> float | Tensor:
    """All scales of Kronecker products together: alpha / rank where a factor is low-rank, times the trained one."""
    scale = 1.0 if rank is None else alpha / rank
    return scale if scalar is None else scale * scalar


def kron(left: Tensor, right: Tensor) -> Tensor:
    """The Kronecker product of two matrices, of any strides (`torch.kron` refuses some)."""
    return (left[:, None, :, None] * right[:, None, :]).reshape(len(left) * len(right), -1)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(precise(tensor))


def _expected_shapes(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes parts of these names have when they belong to a weight of this shape; none when they do not."""
    if set(parts) not in _KINDS or any(part.dim() < 2 for part in parts.values()):
        return {}
    p, m = _left_shape(parts)
    if not p or not m or shape[0] % p or shape[1] % m:
        return {}
    k, n, kernel = shape[0] // p, shape[1] // m, tuple(shape[2:])
    sizes: dict[str, tuple[int, ...]] = {"w1": (p, m)}
    if "w1" not in parts:
        rank = parts["w1_a"].shape[1]
        sizes = {"w1_a": (p, rank), "w1_b": (rank, m)}
    if "w2" in parts:
        return sizes | {"w2": (k, n, *kernel)}
    if "t2" in parts:
        rank = len(parts["t2"])
        return sizes | {"w2_a": (rank, k), "w2_b": (rank, n), "t2": (rank, rank, *kernel)}
    rank = parts["w2_a"].shape[1]
    return sizes | {"w2_a": (k, rank), "w2_b": (rank, n * math.prod(kernel))}
