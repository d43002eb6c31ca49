"""Slow, obvious references for orthogonal algorithms in float64, and layers to try them on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixshow.lycoris.algorithm import Algorithm


def rotations(blocks: Tensor, limit: float = 0.0, multiplier: float = 1.0) -> Tensor:
    """The Cayley transform with a real inverse, interpolated with the identity."""
    skew = blocks - blocks.mT
    if limit > 0 and skew.norm() + 1e-8 > limit:
        skew = skew * limit / (skew.norm() + 1e-8)
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype)
    return multiplier * (identity + skew) @ torch.linalg.inv(identity - skew) + (1 - multiplier) * identity


def butterfly(turns: Tensor, weight: Tensor) -> Tensor:
    """All stages of `turns [m, N, b, b]` on the rows of a matrix, one channel permutation at a time."""
    stages, count, size = turns.shape[:3]
    for stage in range(stages):
        step = 2**stage * size // 2
        order = torch.arange(len(weight)).reshape(-1, 2, step).transpose(1, 2).flatten()
        turned = torch.block_diag(*turns[stage]) @ weight[order]
        weight = torch.empty_like(weight).index_copy(0, order, turned)
    assert count * size == len(weight)
    return weight


def filled(adapter: Algorithm, seed: int = 0, size: float = 0.3) -> Algorithm:
    """An adapter in float64 with random parameters around their start."""
    generator = torch.Generator().manual_seed(seed)
    adapter = adapter.double()
    for value in adapter.parameters():
        value.data += size * torch.randn(value.shape, dtype=torch.float64, generator=generator)
    return adapter


LAYERS = {
    "linear": (lambda: nn.Linear(6, 20), (2, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 20, 3, padding=1), (2, 6, 7)),
    "conv2d": (lambda: nn.Conv2d(6, 20, 3, stride=2, padding=1, dilation=2), (2, 6, 7, 5)),
    "grouped": (lambda: nn.Conv2d(6, 20, 3, groups=2, bias=False), (2, 6, 4, 5)),
    "conv3d": (lambda: nn.Conv3d(6, 20, (1, 3, 3)), (1, 6, 2, 4, 5)),
}


def layer(kind: str) -> tuple[nn.Module, Tensor]:
    """A module in float64 and an input for it."""
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    return build().double().requires_grad_(False), torch.randn(shape, dtype=torch.float64)
