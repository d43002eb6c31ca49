"""Kronecker factors on activations, their product not being formed.

An input of `m` blocks of width `n` goes through w2 `[k, n]` block by block and through w1 `[p, m]` across the blocks;
low-rank parts of w2 stand before and after w1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.lycoris.algorithm import module_operation
from mixshow.lycoris.kronecker import KroneckerFactors
from mixshow.lycoris.layer import MOVE, pointwise

_WIDE = 8  # blocks from this width on are multiplied one by one; narrower ones are first turned into rows


def across_first(factors: KroneckerFactors) -> bool:
    """Whether whole factors are cheaper with w1 before w2."""
    (p, m, k, n), kernel = factors.sizes, math.prod(factors.shape[2:])
    return p * m * n + p * n * k * kernel < m * n * k * kernel + p * m * k


def cost_per_position(factors: KroneckerFactors) -> int:
    """Multiplications of `kronecker_change` for one position of the output; moved elements count as `MOVE` of them."""
    (p, m, k, n), kernel = factors.sizes, math.prod(factors.shape[2:])
    if "w2" not in factors.parts:
        rank = factors.parts["w2_b"].shape[0]
        return m * n * rank * kernel + p * m * rank + p * rank * k + MOVE * (2 * (m + p) * rank + p * k)
    if across_first(factors):
        return p * m * n + p * n * k * kernel + MOVE * (m * n + 2 * p * n + p * k)
    return m * n * k * kernel + p * m * k + MOVE * (2 * m * k + 2 * p * k)


def kronecker_change(factors: KroneckerFactors, module: nn.Module, x: Tensor, strength: float | Tensor = 1.0) -> Tensor:
    """The product's part of the output of a module without groups.

    Args:
        x: `[..., in]` for a linear module, `[batch, in, *space]` for a convolution.
        strength: factor of the product.
    """
    left, space = (factors.left() * strength).to(x.dtype), len(factors.shape) - 2
    if space:
        blocks = x.reshape(-1, factors.shape[1] // left.shape[1], *x.shape[-space:])  # [batch * m, n, *space]
    else:
        blocks = x.unflatten(-1, (left.shape[1], -1))  # [..., m, n]
    if "w2" not in factors.parts:
        up, down = (factor.to(x.dtype) for factor in factors.right_factors())
        blocks = pointwise(_across(module_operation(module, blocks, down), left, space), up, space)
    elif across_first(factors):
        blocks = module_operation(module, _across(blocks, left, space), factors.right().to(x.dtype))
    else:
        blocks = _across(module_operation(module, blocks, factors.right().to(x.dtype)), left, space)
    if space:
        return blocks.reshape(*x.shape[: -1 - space], factors.shape[0], *blocks.shape[2:])
    return blocks.flatten(-2)


def rows_times(rows: Tensor, factors: KroneckerFactors) -> Tensor:
    """`rows [..., out] @ product [out, in]` for a product without a kernel."""
    left = factors.left().to(rows.dtype)
    blocks = rows.unflatten(-1, (left.shape[0], -1))
    if "w2" in factors.parts:
        return _across(F.linear(blocks, factors.right().to(rows.dtype).T), left.T, 0).flatten(-2)
    up, down = (factor.to(rows.dtype) for factor in factors.right_factors())
    return F.linear(_across(F.linear(blocks, up.T), left.T, 0), down.T).flatten(-2)


def _across(blocks: Tensor, left: Tensor, space: int) -> Tensor:
    """w1 across the blocks: `[..., m, c]` to `[..., p, c]`, or `[batch * m, c, *space]` to `[batch * p, c, *space]`."""
    if space:
        grouped = blocks.reshape(-1, left.shape[1], blocks[0].numel())
        return torch.bmm(left.expand(len(grouped), -1, -1), grouped).reshape(-1, *blocks.shape[1:])
    if blocks.shape[-1] < _WIDE:
        return F.linear(blocks.transpose(-1, -2), left).transpose(-1, -2)
    grouped = blocks.reshape(-1, *blocks.shape[-2:])
    return torch.bmm(left.expand(len(grouped), -1, -1), grouped).reshape(*blocks.shape[:-2], -1, blocks.shape[-1])
