"""Stage ``keypoints``: trains the key-point finder on renders of single puppets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixshow.puppets.keypoints import (
    CELL,
    POINT_ROWS,
    KeypointFinder,
    KeypointNet,
    cell_centres,
    expected_positions,
)
from mixshow.puppets.training.autoencoder import to_tensor
from mixshow.puppets.training.loop import Plan, Trainer, autocast, device, load_average, step_generators
from mixshow.puppets.training.renders import HELD_OUT, Sample, make_samples

STAGE = "keypoints"
_SEED = 406
_BATCH = 32


def _single(samples: list[Sample]) -> list[Sample]:
    return [sample for sample in samples if len(sample.scene.puppets) == 1]


def _targets(samples: list[Sample]) -> Tensor:
    """[n, points, 2] in pixels."""
    return torch.from_numpy(np.stack([s.scene.puppets[0].keypoints[list(POINT_ROWS), :2] for s in samples]))


def train(folder: Path, steps: int, renders: int, stop_at: int | None = None) -> None:
    """Train (or go on training) the key-point finder."""
    torch.manual_seed(_SEED)
    on = device()
    network = KeypointNet().to(on)
    samples = _single(make_samples(folder, range(renders), decoded=0.6))
    centres = cell_centres().to(on)

    def loss_of(step: int) -> Tensor:
        rng, generator = step_generators(_SEED, step)
        chosen = [samples[int(rng.integers(len(samples)))] for _ in range(_BATCH)]
        pictures = to_tensor([sample.picture for sample in chosen])
        pictures = pictures * (0.92 + 0.16 * torch.rand(_BATCH, 3, 1, 1, generator=generator))
        pictures = pictures + 0.03 * torch.randn(pictures.shape, generator=generator)
        target = _targets(chosen).to(on)
        with autocast(on):
            maps = network(pictures.to(on))
        # A Gaussian around the truth gives every cell a gradient; the distance makes the mean exact.
        distances = (centres - target[:, :, None]).square().sum(dim=3) / (2 * (1.2 * CELL) ** 2)
        heat = (-distances).softmax(dim=2)
        entropy = -(heat * maps.float()).sum(dim=2).mean()
        return entropy + (expected_positions(maps) - target).abs().mean() / CELL

    Trainer(folder, STAGE, {STAGE: network}, Plan(steps, 1e-3, ema=0.99)).run(loss_of, stop_at)


def measure(folder: Path, renders: int = 400) -> float:
    """The mean error on held-out renders through the autoencoder, as a part of the puppet's height."""
    network = KeypointNet()
    load_average(folder, STAGE, {STAGE: network})
    samples = _single(make_samples(folder, range(HELD_OUT, HELD_OUT + renders), decoded=1.0))
    found = KeypointFinder(network).find([sample.picture for sample in samples])
    heights = np.array([sample.scene.puppets[0].height for sample in samples])
    errors = np.linalg.norm(found - _targets(samples).numpy(), axis=2)
    return float((errors / heights[:, None]).mean())
