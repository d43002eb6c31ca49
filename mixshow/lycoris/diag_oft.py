"""Diag-OFT: rotations of blocks of neighbouring output channels, `W' = R^T W` block by block.

Qiu et al. 2023 (OFT, arXiv 2306.07280); Yeh et al. 2023 (LyCORIS, arXiv 2309.14859). Files of sd-scripts' OFT hold the
same tensors for its `oft_unet_` names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Self

from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.factorization import factorization
from mixshow.lycoris.layer import matrix_of
from mixshow.lycoris.rotation import Rotation
from mixshow.lycoris.stages import Stage, blocks_together, neighbours


class DiagOFT(Rotation):
    """One rotation per block; `blocks [K, b, b]` with `K * b` output channels."""

    name = "diag-oft"
    aliases = ("oft",)
    layout = "oft_blocks [K, b, b] with K * b output channels (and rescale of as many elements)"

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        if not isinstance(names, Mapping) or "oft_blocks" not in names:
            return "oft_blocks" in names
        return names["oft_blocks"].dim() != 4  # four axes are BOFT's

    @classmethod
    def create(
        cls, module: nn.Module, *, dim: int, alpha: float, constraint: float = 0.0, rescaled: bool = False
    ) -> Self:
        """Identity rotations.

        Args:
            dim: block size, where it divides the output channels; see `factorization`, whose smaller factor it is.
            alpha: rotations have no scale; not used.
            constraint: the generators' norm is kept at or below this times the number of output channels; 0: free.
            rescaled: train a factor per output channel as well.

        Raises:
            MixshowError: blocks of one channel, which cannot rotate.
        """
        weight = matrix_of(module)
        channels = weight.shape[0]
        size, count = factorization(channels, dim)
        if size == 1:
            possible = [b for b in range(2, channels + 1) if factorization(channels, b)[0] > 1]
            nearest = min(possible, key=lambda b: abs(b - dim), default=None)
            hint = "exclude the module" if nearest is None else f"the nearest dim is {nearest}"
            raise MixshowError(
                f"expected blocks of at least 2 channels, found that dim {dim} splits {channels} output channels into "
                f"blocks of 1; {hint}"
            )
        return cls._fresh((count, size, size), weight, constraint, rescaled)

    @classmethod
    def fits(cls, shape: tuple[int, ...], channels: int) -> bool:
        return len(shape) == 3 and shape[1] == shape[2] and shape[0] * shape[1] == channels

    @property
    def channels(self) -> int:
        return self.blocks.shape[0] * self.blocks.shape[1]

    @property
    def work(self) -> tuple[int, int]:
        count, size = self.blocks.shape[:2]
        return blocks_together(count, size) * size, 1

    def stages(self, changes: Tensor) -> list[Stage]:
        return [neighbours(changes.mT)]
