"""Grid pictures at training checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mixshow.edlora.trainer import OnCheckpoint
from mixshow.lycoris.network import Network
from mixshow.models.base import Base
from mixshow.sampling.generate import sample
from mixshow.sampling.pictures import picture_grid, save_picture


def grid_writer(
    folder: Path,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    strengths: Sequence[float],
    negative_prompt: str,
    size: int,
    steps: int,
    guidance: float,
    scheduler: str,
) -> OnCheckpoint:
    """A callback that writes `<folder>/step_NNNNN.png`: a row per strength, a column per prompt and seed."""

    def write(step: int, base: Base, network: Network) -> None:
        pictures: list[Image.Image] = []
        before = network.multiplier
        try:
            for strength in strengths:
                network.multiplier = strength
                pictures += sample(
                    base,
                    [prompt for prompt in prompts for _ in seeds],
                    seeds=[seed for _ in prompts for seed in seeds],
                    negative_prompt=negative_prompt,
                    width=size,
                    height=size,
                    steps=steps,
                    guidance=guidance,
                    scheduler=scheduler,
                )
        finally:
            network.multiplier = before
        columns = len(prompts) * len(seeds)
        labels = [f"strength {strength:g}" for strength in strengths for _ in range(columns)]
        save_picture(picture_grid(pictures, columns, labels), folder / f"step_{step:05d}.png")

    return write
