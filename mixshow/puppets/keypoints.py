"""The key-point finder: where head, hands and feet of a puppet are, to score how a pose was followed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mixshow.puppets.judge import ConvBlock
from mixshow.puppets.weights_file import load_weights
from mixshow.puppets.world import SQUARE
from mixshow.sampling.joints import INDEX

POINTS = ("nose", "right_wrist", "left_wrist", "right_ankle", "left_ankle")
POINT_ROWS = tuple(INDEX[name] for name in POINTS)  # their rows in a COCO-18 skeleton
MAP = 32  # side of the heat maps
CELL = SQUARE[0] / MAP  # pixels of the picture per cell of a heat map


class KeypointNet(nn.Module):
    """A small hourglass: three halvings after the heat maps' resolution, back up with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvBlock(3, 16), ConvBlock(16, 32))  # 128 -> 32
        self.halved = ConvBlock(32, 64)
        self.quartered = ConvBlock(64, 96)
        # Without the norms the sums with the skips grow until training diverges.
        self.from_quarter = nn.Sequential(nn.Conv2d(96, 64, 3, padding=1), nn.GroupNorm(8, 64))
        self.from_half = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.GroupNorm(8, 32))
        self.heat = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, len(POINTS), 1))

    def forward(self, values: Tensor) -> Tensor:
        """Pictures [n, 3, 128, 128] to log-probability maps [n, points, MAP * MAP]."""
        full = self.stem(values)
        half = self.halved(full)
        quarter = self.quartered(half)
        half = torch.relu(half + nn.functional.interpolate(self.from_quarter(quarter), scale_factor=2))
        full = torch.relu(full + nn.functional.interpolate(self.from_half(half), scale_factor=2))
        return self.heat(full).flatten(2).log_softmax(dim=2)


def cell_centres() -> Tensor:
    """[MAP * MAP, 2]: x and y in pixels of every heat-map cell."""
    axis = (torch.arange(MAP) + 0.5) * CELL
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def expected_positions(maps: Tensor) -> Tensor:
    """Log-probability maps to their mean positions [n, points, 2] in pixels."""
    return maps.float().exp() @ cell_centres().to(maps.device)


class KeypointFinder:
    """Finds the points of ``POINTS`` in pictures of one puppet."""

    def __init__(self, network: KeypointNet) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path | str | None = None) -> Self:
        """The shipped key-point finder, or one from a file.

        Raises:
            MixshowError: the weights are missing.
        """
        return cls(load_weights(KeypointNet(), "keypoints", path))

    @torch.no_grad()
    def find(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Positions [n, points, 2] (x, y) in pixels of each picture, which should be about square."""
        small = np.stack(
            [np.asarray(image.convert("RGB").resize(SQUARE, Image.Resampling.BILINEAR)) for image in images]
        )
        values = torch.from_numpy(small).permute(0, 3, 1, 2).float() / 127.5 - 1
        positions = expected_positions(self.network(values)).numpy()
        scale = np.array([[image.width / SQUARE[0], image.height / SQUARE[1]] for image in images])
        return positions * scale[:, None]
