"""DyLoRA: LoRA trained so that every prefix of its ranks, in whole blocks, is a network of its own.

Valipour et al. 2022 (arXiv 2210.07558). A training forward draws a block; ranks up to that block take part, and only
the block itself learns. A prefix of p ranks has the scale alpha / p, as a file cut to those ranks has with its alpha
unchanged; LyCORIS trains with `block_size` times that, for which alpha is given that much larger here. Outside training
all ranks are used. Files are LoRA files, and read as such.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, precise, read_alpha, scale_tensor, weight_of
from mixshow.lycoris.layer import check_rank, fits, matrix_of
from mixshow.lycoris.low_rank import low_rank_change, weight_is_cheaper


class DyLoRA(Algorithm):
    """Low-rank change of a linear layer or a convolution, grouped or not, for many ranks at once.

    Attributes:
        block: the block to train, from 0; None: drawn anew in every training forward, by torch's own generator.
    """

    name = "dylora"
    options: ClassVar[Mapping[str, str]] = {"block_size": "ranks that are trained together; divides the rank"}

    def __init__(self, down: Tensor, up: Tensor, alpha: float, *, block_size: int = 4) -> None:
        """
        Args:
            down: `[r, in / groups, *kernel]`.
            up: `[out, r]`.
            alpha: as files have it, so that the scale of all ranks is alpha / r.
        """
        super().__init__()
        if block_size < 1 or down.shape[0] % block_size:
            raise MixshowError(f"block_size: expected a divisor of the rank {down.shape[0]}, found {block_size}")
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.alpha, self.block_size = float(alpha), block_size
        self.block: int | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        """Never: nothing in a file tells it from LoRA's."""
        return False

    @classmethod
    def create(cls, module: nn.Module, *, dim: int, alpha: float, block_size: int = 4) -> Self:
        weight = matrix_of(module)
        check_rank(weight, dim, min(weight.shape[0], weight[0].numel()))
        down = nn.init.kaiming_uniform_(torch.empty(dim, *weight.shape[1:]), a=math.sqrt(5))
        return cls(down, torch.zeros(weight.shape[0], dim), alpha, block_size=block_size)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        """As `Algorithm.from_tensors`; blocks of 4 where the rank allows it, otherwise of its common divisor with 4."""
        weight = matrix_of(module)
        down, up = tensors["lora_down.weight"].float(), tensors["lora_up.weight"].float()
        rank = next(iter(down.shape), 0)
        if not fits(down, (rank, *weight.shape[1:])) or not fits(up, (weight.shape[0], rank)):
            raise MixshowError(
                f"expected factors for a weight of shape {list(weight.shape)}, found up {list(up.shape)} and down "
                f"{list(down.shape)}; the file was made for a base of other widths"
            )
        down, up = down.reshape(rank, *weight.shape[1:]), up.flatten(1)
        return cls(down, up, read_alpha(tensors, rank), block_size=math.gcd(rank, 4))

    def tensors(self) -> dict[str, Tensor]:
        up = self.up.reshape(*self.up.shape, *[1] * (self.down.dim() - 2))
        return {"alpha": scale_tensor(self.alpha), "lora_up.weight": up, "lora_down.weight": self.down}

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        dtype = precise(self.up)
        return self.up.to(dtype) * (self.alpha / self.rank), self.down.flatten(1).to(dtype)

    def delta(self, weight: Tensor) -> Tensor:
        up, down = self.low_rank(weight)
        return (up @ down).unflatten(1, self.down.shape[1:])

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        weight = weight_of(module)
        per_position = getattr(module, "groups", 1) * self.down.numel() + self.up.numel()
        whole = weight_is_cheaper(weight, positions, per_position, self.rank * weight.numel())
        return whole and not self.training

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        up, down = self._prefix() if self.training else self.low_rank(weight_of(module))
        mask = self.rank_mask(self.rank, up)
        up = up * multiplier if mask is None else up * multiplier * mask
        return low_rank_change(module, x, up, down.unflatten(1, self.down.shape[1:]))

    def _prefix(self) -> tuple[Tensor, Tensor]:
        """The factors of a training forward, zero after the drawn block, gradients for the block alone.

        Selected by masks: no number leaves the device, and every parameter has a gradient in every process.
        """
        device, blocks = self.up.device, self.rank // self.block_size
        drawn = torch.randint(blocks, (), device=device) if self.block is None else self.block
        of_block = torch.arange(self.rank, device=device) // self.block_size
        trained, used = of_block == drawn, of_block <= drawn
        up, down = self.low_rank(self.up)
        up, down = torch.where(trained, up, up.detach()), torch.where(trained[:, None], down, down.detach())
        return up * used * (blocks / (drawn + 1)), down

    def shrink(self, ratio: float) -> None:
        self.up.mul_(ratio)


def at_rank(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """A network file's tensors cut to the first ranks of every module that has more.

    alpha stays, as in files that other programs cut.

    Raises:
        MixshowError: there is nothing to cut, or no module has that many ranks.
    """
    largest = _largest_rank(tensors)
    if not 1 <= rank <= largest:
        raise MixshowError(f"rank: expected 1 to {largest}, the file's largest, found {rank}")
    cut = dict(tensors)
    for key in tensors:
        if key.endswith("lora_down.weight"):
            cut[key] = tensors[key][:rank]
        elif key.endswith("lora_up.weight"):
            cut[key] = tensors[key][:, :rank].contiguous()
    return cut


def every_rank(tensors: Mapping[str, Tensor], block_size: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """The networks inside a DyLoRA file: `(rank, tensors)` for one block, two blocks, and so on below all of them.

    Raises:
        MixshowError: there is nothing to cut into such blocks.
    """
    largest = _largest_rank(tensors)
    if not 1 <= block_size < largest:
        raise MixshowError(f"block_size: expected 1 to {largest - 1}, below the file's rank, found {block_size}")
    for rank in range(block_size, largest, block_size):
        yield rank, at_rank(tensors, rank)


def _largest_rank(tensors: Mapping[str, Tensor]) -> int:
    ranks = [tensor.shape[0] for key, tensor in tensors.items() if key.endswith("lora_down.weight")]
    if not ranks:
        raise MixshowError("expected tensors 'lora_down.weight' of a DyLoRA or LoRA file, found none")
    return max(ranks)
