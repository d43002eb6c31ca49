"""What orthogonal algorithms share: `W' = d * (R W)`, R a product of block-wise rotations of the output channels.

At multiplier t each rotation becomes `I + t (R - I)` and the rescaling `1 + t (d - 1)`, so that 0 is the base itself.
LyCORIS applies d whole at every multiplier. The bias is never turned.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, computed_in, module_operation, precise, scale_tensor, weight_of
from mixshow.lycoris.cayley import rotation_changes
from mixshow.lycoris.layer import matrix_of
from mixshow.lycoris.low_rank import weight_is_cheaper
from mixshow.lycoris.operation import output_positions, rebuilt_operation
from mixshow.lycoris.stages import PASS, Stage, turned

ROTATION_OPTIONS = {
    "constraint": "largest norm of the rotations' generators, per output channel; 0: none",
    "rescaled": "train a factor per output channel as well",
}


class Rotation(Algorithm):
    """Rotations of the output channels of a linear layer or convolution.

    Attributes:
        blocks: `[..., b, b]`; a block's rotation is the Cayley transform of it less its transpose.
        rescale: `[out, 1, ...]` with the weight's number of axes, or None.
        constraint: 0: none.
    """

    layout: ClassVar[str]  # of the blocks, for messages
    options = ROTATION_OPTIONS

    def __init__(self, blocks: Tensor, rescale: Tensor | None, constraint: float) -> None:
        super().__init__()
        self.blocks = nn.Parameter(blocks)
        self.rescale = None if rescale is None else nn.Parameter(rescale)
        self.constraint = float(constraint)

    @abstractmethod
    def stages(self, changes: Tensor) -> list[Stage]:
        """The rotations in the order they act, from `R - I` of every block."""

    @property
    @abstractmethod
    def work(self) -> tuple[int, int]:
        """Multiplications per output channel that the stages need, and their number."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Output channels."""

    @classmethod
    @abstractmethod
    def fits(cls, shape: tuple[int, ...], channels: int) -> bool:
        """Whether blocks of a shape rotate that many channels."""

    @classmethod
    def _fresh(cls, shape: tuple[int, ...], weight: Tensor, constraint: float, rescaled: bool) -> Self:
        if constraint < 0 or not math.isfinite(constraint):
            raise MixshowError(f"constraint: expected 0 (none) or a positive number, found {constraint}")
        return cls(torch.zeros(shape), torch.ones(_per_output(weight)) if rescaled else None, constraint)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        weight = matrix_of(module)
        blocks, rescale = tensors["oft_blocks"], tensors.get("rescale")
        if not cls.fits(tuple(blocks.shape), weight.shape[0]) or (
            rescale is not None and rescale.numel() != weight.shape[0]
        ):
            found = f"oft_blocks {list(blocks.shape)}" + ("" if rescale is None else f", rescale {list(rescale.shape)}")
            raise MixshowError(
                f"expected {cls.layout}, for a weight {list(weight.shape)}, found {found}; the file was made for a "
                "base of other widths"
            )
        if "alpha" not in tensors:
            raise MixshowError(
                "expected a tensor 'alpha', which holds the constraint of this algorithm; add 0 for a network that was "
                "trained without one"
            )
        constraint = float(tensors["alpha"].flatten()[0])
        if constraint < 0 or not math.isfinite(constraint):
            raise MixshowError(f"alpha: expected the constraint, 0 (none) or a positive number, found {constraint}")
        if rescale is not None:
            rescale = rescale.float().reshape(_per_output(weight))
        return cls(blocks.float(), rescale, constraint)

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {"oft_blocks": self.blocks, "alpha": scale_tensor(self.constraint)}
        return found if self.rescale is None else {**found, "rescale": self.rescale}

    def _stages(self, multiplier: float, mask: Tensor | None = None) -> list[Stage]:
        with torch.autocast(self.blocks.device.type, enabled=False):
            blocks = self.blocks.to(precise(self.blocks))
            changes = multiplier * rotation_changes(blocks, self.constraint * self.channels)
            if mask is not None:
                changes = changes * mask.reshape(*blocks.shape[:-2], 1, 1)
            return self.stages(changes)

    def _turned(self, h: Tensor, multiplier: float, mask: Tensor | None, *, rows: bool) -> Tensor:
        change = turned([stage.to(h.dtype) for stage in self._stages(multiplier, mask)], h, rows=rows)
        if self.rescale is None:
            return change
        excess = multiplier * (self.rescale.to(precise(self.rescale)) - 1).reshape(-1, *[1] * (not rows))
        return change + excess.to(h.dtype) * (h + change)

    def _change(self, weight: Tensor, multiplier: float, mask: Tensor | None = None) -> Tensor:
        whole = weight.to(precise(weight, self.blocks)).reshape(1, weight.shape[0], -1)
        return self._turned(whole, multiplier, mask, rows=False).reshape(weight.shape)

    def change_at(self, weight: Tensor, multiplier: float = 1.0) -> Tensor:
        return self._change(weight, multiplier)

    def delta(self, weight: Tensor) -> Tensor:
        return self._change(weight, 1.0)

    def weight_at(self, weight: Tensor, multiplier: float = 1.0) -> Tensor:
        change = self._change(weight, multiplier)
        return weight.to(change.dtype) + change

    def _per_channel(self) -> int:
        """Multiplications, or what takes as long, to turn one channel."""
        products, stages = self.work
        return products + stages * PASS

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        weight, each = weight_of(module), self._per_channel()
        return _grouped(module) or weight_is_cheaper(weight, positions, each * self.channels, each * weight.numel())

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        weight = weight_of(module)
        mask = self.rank_mask(math.prod(self.blocks.shape[:-2]), self.blocks)
        if base_output is None:  # to turn the output, it has to be computed again
            turns_weight = self.prefers_weight(module, output_positions(module, x))
        else:
            turns_weight = _grouped(module) or weight.numel() < self.channels * self._per_channel()
        if turns_weight:
            parameters = [*self.parameters(), weight]
            return rebuilt_operation(
                module, computed_in(x), None, lambda: self._change(weight, multiplier, mask), parameters
            )
        if base_output is None:
            return self.output_change(module, module_operation(module, computed_in(x), weight), multiplier, mask)
        bias = module.bias
        if isinstance(bias, Tensor):
            base_output = base_output - bias.to(base_output.dtype).reshape(-1, *[1] * (weight.dim() - 2))
        return self.output_change(module, base_output, multiplier, mask)

    def output_change(self, module: nn.Module, output: Tensor, multiplier: float, mask: Tensor | None = None) -> Tensor:
        """The change of the output of a module without groups, from the output without bias."""
        if isinstance(module, nn.Linear):
            return self._turned(output.reshape(-1, self.channels), multiplier, mask, rows=True).reshape(output.shape)
        places = math.prod(output.shape[2 - weight_of(module).dim() :])
        flat = output.reshape(-1, self.channels, places)
        return self._turned(flat, multiplier, mask, rows=False).reshape(output.shape)

    def scale_norm(self, max_norm: float, weight: Tensor) -> float:
        with torch.no_grad():
            norm = self.regularised_norm(weight)
            while norm > max_norm * (1 + 1e-3):  # a rotation grows slower than its generator: each round is too little
                self.shrink(max_norm / norm)
                norm = self.regularised_norm(weight)
        return norm

    def shrink(self, ratio: float) -> None:
        with torch.no_grad():
            self.blocks.mul_(ratio)
            if self.rescale is not None:
                self.rescale.sub_(1).mul_(ratio).add_(1)


def _grouped(module: nn.Module) -> bool:
    """Whether channels read different inputs, so that turning the output is not turning the weight."""
    return getattr(module, "groups", 1) != 1


def _per_output(weight: Tensor) -> tuple[int, ...]:
    """The shape of a factor for every output channel."""
    return weight.shape[0], *[1] * (weight.dim() - 1)
