"""DoRA's magnitude: the changed weight keeps its direction and takes trained norms on one axis.

Liu et al. 2024 (arXiv 2402.09353); LyCORIS's variants: norms per output (its default since 3.2) or per input, on top
of any additive change. `W' = m * M / (|M| + eps)` with `M = W + delta`; unlike there, the multiplier goes from W, not
from M, to W', so that multiplier 0 is the base itself. At multiplier 1 both are the same.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import precise

MAGNITUDE_OPTIONS = {
    "weight_decompose": "DoRA: train the norms of the weight apart from its direction",
    "wd_on_out": "DoRA's norms are per output (true) or per input channel (false)",
}


class Magnitude(nn.Module):
    """Trained norms `dora_scale`: `[out, 1, ...]` or `[1, in, 1, ...]`, with as many axes as the weight."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)

    @classmethod
    def create(cls, weight: Tensor, *, on_output: bool = True) -> Self:
        """The weight's own norms, so that nothing changes."""
        return cls(_norm(weight.detach().float(), 0 if on_output else 1))

    @classmethod
    def from_tensor(cls, scale: Tensor, weight: Tensor) -> Self:
        """From a file's `dora_scale`, whose shape tells the axis (per output where both fit).

        Raises:
            MixshowError: it fits neither axis.
        """
        shapes = [[n if i == axis else 1 for i in range(weight.dim())] for axis, n in enumerate(weight.shape[:2])]
        found = list(scale.shape)
        if found not in shapes:
            raise MixshowError(
                f"dora_scale: expected a tensor {shapes[0]} or {shapes[1]} for a weight {list(weight.shape)}, found "
                f"{found}; the file was made for a base of other widths"
            )
        return cls(scale.float())

    @property
    def on_output(self) -> bool:
        """Whether the norms are per output."""
        return self.scale.shape[1] == 1

    def delta(self, weight: Tensor, change: Tensor) -> Tensor:
        """The whole change of a weight that an additive change has been made to."""
        weight = weight.to(change.dtype)
        total = weight + change
        return total * self._ratio(self.scale, _norm(total, 0 if self.on_output else 1)) - weight

    @staticmethod
    def _ratio(scale: Tensor, norm: Tensor) -> Tensor:
        """What rows or columns of these norms are multiplied by; the gradient goes through the norm."""
        return scale.to(norm.dtype) / (norm + torch.finfo(scale.dtype).eps)

    def output_ratio(self, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
        """The factors `[out]` of a low-rank change, without forming it.

        `|W + B A|^2 = |W|^2 + 2 sum (W A^T) * B + sum (B A A^T) * B`, row by row.

        Args:
            up: `[out, r]`, with all scales.
            down: `[r, in * kernel]`.
        """
        dtype = precise(weight, up)
        rows, up, down = weight.flatten(1).to(dtype), up.to(dtype), down.to(dtype)
        cross = ((2 * (rows @ down.T) + up @ (down @ down.T)) * up).sum(1)
        squared = torch.linalg.vector_norm(rows, dim=1).square() + cross  # nothing of the weight's size is made
        return self._ratio(self.scale.flatten(), squared.clamp_min(torch.finfo(dtype).tiny).sqrt())


def _norm(weight: Tensor, axis: int) -> Tensor:
    others = [i for i in range(weight.dim()) if i != axis]
    return torch.linalg.vector_norm(weight, dim=others, keepdim=True)
