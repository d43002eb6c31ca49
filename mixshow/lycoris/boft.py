"""BOFT: rotations of blocks of output channels in stages that mix ever more distant channels, like a butterfly.

Liu et al. 2023 (arXiv 2311.06243); Yeh et al. 2023 (LyCORIS, arXiv 2309.14859). With `out = b * 2^(m-1)` there are m
stages of `N = 2^(m-1)` blocks. A channel's number reads as m bits and a rest j below b/2; stage i mixes bit i with j.
So a run of stages mixes its bits with j only: it is computed as one stage of wider blocks, in far fewer passes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.layer import matrix_of
from mixshow.lycoris.rotation import Rotation
from mixshow.lycoris.stages import PASS, Stage


class BOFT(Rotation):
    """Butterfly of rotations; `blocks [m, N, b, b]` with `N * b` output channels, `N = 2^(m-1)`."""

    name = "boft"
    layout = "oft_blocks [m, N, b, b] with N * b output channels, N = 2^(m-1) (and rescale of as many elements)"

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return isinstance(names, Mapping) and "oft_blocks" in names and names["oft_blocks"].dim() == 4

    @classmethod
    def create(
        cls, module: nn.Module, *, dim: int, alpha: float, constraint: float = 0.0, rescaled: bool = False
    ) -> Self:
        """Identity rotations.

        Args:
            dim: the block size is the largest possible one that is not above it, see `block_sizes`.
            alpha: rotations have no scale; not used.
            constraint: the generators' norm is kept at or below this times the number of output channels; 0: free.
            rescaled: train a factor per output channel as well.

        Raises:
            MixshowError: no block size is possible; the message has the nearest ones.
        """
        weight = matrix_of(module)
        channels = weight.shape[0]
        sizes = block_sizes(channels)
        if not sizes:
            raise MixshowError(f"expected an even number of output channels, found {channels}; exclude the module")
        if dim < sizes[0]:
            more = ", ".join(str(size) for size in sizes[1:3])
            raise MixshowError(
                f"expected a dim of at least {sizes[0]}, the smallest block size for {channels} output channels"
                f"{f' (next: {more})' if more else ''}, found {dim}"
            )
        size = max(size for size in sizes if size <= dim)
        count = channels // size
        return cls._fresh((count.bit_length(), count, size, size), weight, constraint, rescaled)

    @classmethod
    def fits(cls, shape: tuple[int, ...], channels: int) -> bool:
        if len(shape) != 4 or shape[2] != shape[3] or shape[2] % 2:
            return False
        return shape[1] * shape[2] == channels and shape[1] == 2 ** (shape[0] - 1)

    @property
    def channels(self) -> int:
        return self.blocks.shape[1] * self.blocks.shape[2]

    @property
    def work(self) -> tuple[int, int]:
        runs = _runs(self.blocks.shape[0], self.blocks.shape[-1])
        return sum(_width(self.blocks.shape[-1], run) for run in runs), len(runs)

    def stages(self, changes: Tensor) -> list[Stage]:
        return [_fused(changes, run) for run in _runs(changes.shape[0], changes.shape[-1])]


def block_sizes(channels: int) -> list[int]:
    """The possible block sizes, ascending: even, and the channels a power of two times them."""
    odd = channels // (channels & -channels)
    return [odd * 2**i for i in range(1, channels.bit_length()) if odd * 2**i <= channels]


def _width(size: int, run: range) -> int:
    """Channels that a run of stages mixes with each other."""
    return 2 ** len(run) * size // 2


def _runs(stages: int, size: int) -> list[range]:
    """The stages in runs of about equal length, as many as is cheapest."""

    def split(count: int) -> list[range]:
        bounds = [round(i * stages / count) for i in range(count + 1)]
        return [range(first, last) for first, last in pairwise(bounds)]

    return min(map(split, range(1, stages + 1)), key=lambda runs: sum(_width(size, run) + PASS for run in runs))


def _fused(changes: Tensor, run: range) -> Stage:
    """A run of stages as one.

    Args:
        changes: `[m, N, b, b]`, each block less the identity; within a block j comes before the bit.
    """
    stages, _, size = changes.shape[:3]
    half, width = size // 2, _width(size, run)
    outer, inner = 2 ** (stages - run.stop), 2**run.start
    identity = torch.eye(width, dtype=changes.dtype, device=changes.device).expand(outer, inner, width, width)
    total = torch.zeros_like(identity)
    for position, stage in enumerate(run):
        high, low = 2 ** (len(run) - 1 - position), 2**position  # bits of the run above and below the stage's own
        matrices = changes[stage].reshape(outer, high, low, inner, half, 2, half, 2)
        before = (identity + total).reshape(outer, inner, high, 2, low, half, width)
        step = torch.einsum("chlqJTjt,cqhtljn->cqhTlJn", matrices, before)
        total = total + step.reshape(total.shape)
    return Stage(total.reshape(-1, width, width), outer=outer, group=2 ** len(run), inner=inner, low=half)
