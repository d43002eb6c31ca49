"""Grid pictures at training checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mixshow.core.files import written_atomically
from mixshow.edlora.trainer import OnCheckpoint
from mixshow.lycoris.network import Network
from mixshow.models.base import Base
from mixshow.sampling.generate import sample

_GAP = 4  # pixels between pictures


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
        rows = []
        before = network.multiplier
        try:
            for strength in strengths:
                network.multiplier = strength
                rows.append(
                    sample(
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
                )
        finally:
            network.multiplier = before
        with written_atomically(folder / f"step_{step:05d}.png") as temporary:
            grid(rows).save(temporary, format="PNG")

    return write


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures of one size in rows, with small gaps."""
    width, height = rows[0][0].size
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + _GAP) - _GAP, len(rows) * (height + _GAP) - _GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + _GAP), y * (height + _GAP)))
    return sheet
