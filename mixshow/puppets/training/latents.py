"""Stage ``latents``: the diffusion model's training set, rendered and encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mixshow.puppets.training import autoencoder
from mixshow.puppets.training.loop import autocast, device, save_atomically
from mixshow.puppets.world import SQUARE, WIDE, Scene, sample_scene

_SEED = 202
_BATCH = 32


@dataclass(frozen=True)
class Group:
    """Scenes of one size. ``weight`` is the share of batches, ``batch`` the number of pictures in one."""

    name: str
    size: tuple[int, int]
    count: int | None
    share: float  # of the data set's pictures
    weight: float
    batch: int

    def scene(self, index: int) -> Scene:
        """Scene ``index`` of the group, not yet rendered."""
        offset = list(GROUPS).index(self.name)
        return sample_scene(_SEED + offset, index, self.size, self.count)

    def scenes(self, total: int) -> int:
        return max(4, round(total * self.share))


GROUPS = {
    group.name: group
    for group in (
        Group("single", SQUARE, 1, 0.65, 0.62, 32),
        Group("pair", SQUARE, 2, 0.11, 0.12, 32),
        Group("wide", WIDE, None, 0.24, 0.26, 16),
    )
}


def latents_path(folder: Path) -> Path:
    return folder / "latents.pt"


@torch.no_grad()
def encode(folder: Path, total: int) -> None:
    """Render and encode ``total`` scenes: means in fp16 and the factor that gives them unit variance.

    Does nothing when they are already there.
    """
    path = latents_path(folder)
    if path.exists() and torch.load(path, map_location="cpu", weights_only=True, mmap=True)["total"] == total:
        return
    on = device()
    model = autoencoder.load(folder).to(on)
    groups: dict[str, Tensor] = {}
    for group in GROUPS.values():
        parts = []
        for start in tqdm(range(0, group.scenes(total), _BATCH), f"latents {group.name}", mininterval=5):
            indices = range(start, min(start + _BATCH, group.scenes(total)))
            pictures = autoencoder.to_tensor([group.scene(index).render() for index in indices]).to(on)
            with autocast(on):
                parts.append(model.encode(pictures).latent_dist.mode().to("cpu", torch.float16))
        groups[group.name] = torch.cat(parts)
    deviation = float(groups["single"].float().std())
    save_atomically({"total": total, "scaling_factor": 1 / deviation, **groups}, path)


def load(folder: Path) -> tuple[dict[str, Tensor], float]:
    """The latents of each group, already scaled, and the scaling factor."""
    state = torch.load(latents_path(folder), map_location="cpu", weights_only=True)
    factor = float(state["scaling_factor"])
    return {name: state[name] * factor for name in GROUPS}, factor


def caption_generator(step: int, row: int) -> np.random.Generator:
    """Captions vary from batch to batch."""
    return np.random.default_rng([_SEED, step, row])
