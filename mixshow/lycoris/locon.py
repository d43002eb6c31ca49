"""LoRA and LoCon: a low-rank change `s * up @ down`, s = alpha / rank, for linear layers and convolutions.

Hu et al. 2021 (arXiv 2106.09685); convolutions: the down part keeps the kernel, the up part is 1x1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm


class LoCon(Algorithm):
    """Low-rank change of a linear layer or an ungrouped 2-D convolution."""

    name = "locon"
    detects = "lora_up.weight"

    def __init__(self, down: Tensor, up: Tensor, alpha: float) -> None:
        """
        Args:
            down: `[r, in]` or `[r, in, k, k]`.
            up: `[out, r]` or `[out, r, 1, 1]`.
        """
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.alpha = float(alpha)

    @property
    def scale(self) -> float:
        return self.alpha / self.down.shape[0]

    @classmethod
    def create(cls, module: nn.Module, *, dim: int, alpha: float) -> Self:
        weight = module.weight
        assert isinstance(weight, Tensor)
        extra = (1, 1) if weight.dim() == 4 else ()
        down = torch.empty(dim, *weight.shape[1:])
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        return cls(down, torch.zeros(weight.shape[0], dim, *extra), alpha)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        down, up = tensors["lora_down.weight"].float(), tensors["lora_up.weight"].float()
        weight = module.weight
        assert isinstance(weight, Tensor)
        if weight.dim() == 4 and down.dim() == 2:  # some files store 1x1 convolutions as matrices
            down, up = down[:, :, None, None], up[:, :, None, None]
        if down.shape[1:] != weight.shape[1:] or up.shape[0] != weight.shape[0] or up.shape[1] != down.shape[0]:
            raise MixshowError(
                f"expected factors for a weight of shape {list(weight.shape)}, found up {list(up.shape)} and down "
                f"{list(down.shape)}; the file was made for a base of other widths"
            )
        alpha = tensors.get("alpha")
        return cls(down, up, down.shape[0] if alpha is None else float(alpha.flatten()[0]))

    def tensors(self) -> dict[str, Tensor]:
        return {"alpha": torch.tensor(self.alpha), "lora_up.weight": self.up, "lora_down.weight": self.down}

    def low_rank(self) -> tuple[Tensor, Tensor]:
        return self.scale * self.up.flatten(1), self.down.flatten(1)

    def delta(self) -> Tensor:
        up, down = self.low_rank()
        precise = torch.promote_types(up.dtype, torch.float32)
        return (up.to(precise) @ down.to(precise)).reshape(self.up.shape[0], *self.down.shape[1:])

    def apply(self, x: Tensor, module: nn.Module) -> Tensor:  # type: ignore[override]
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(module, nn.Conv2d):
            hidden = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
            return F.conv2d(hidden, up) * self.scale
        return F.linear(F.linear(x, down), up * self.scale)
