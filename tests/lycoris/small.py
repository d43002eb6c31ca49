"""A small model of several kinds of layers, and a network on it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from mixshow.lycoris import Network, create_network


class Block(nn.Module):
    """A strided 3x3 and a 1x1 convolution, a norm and a linear layer in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(6, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.mix(self.conv(x)).movedim(1, -1)))


TARGETS = ["lora_unet_conv", "lora_unet_mix", "lora_unet_linear"]
X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def made(block: nn.Module, **keywords: Any) -> Network:
    """A LoCon network away from its start."""
    settings: dict[str, Any] = {"targets": TARGETS, "dim": 2, "alpha": 3.0}
    network = create_network({"unet": block}, **(settings | keywords)).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return network
