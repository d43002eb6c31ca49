"""The stages in their order, with their usual lengths (what the shipped weights had: docs/puppets.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mixshow.core.progress import log
from mixshow.puppets.training import autoencoder, diffusion, export, judge, keypoints, latents, text

WEIGHTS = Path(__file__).parent.parent / "weights"


@dataclass(frozen=True)
class Stage:
    """``run(folder, amount)`` with an amount of steps (or of scenes) that can be scaled down."""

    amount: int
    run: Callable[[Path, int], object]


def stages(weights: Path = WEIGHTS, scale: float = 1.0) -> dict[str, Stage]:
    """All stages by name; ``scale`` also shrinks the sets of renders that a stage keeps in memory."""

    def renders(count: int) -> int:
        return max(16, round(count * scale))

    return {
        "autoencoder": Stage(7000, lambda folder, steps: autoencoder.train(folder, steps, renders(3000))),
        "latents": Stage(24000, latents.encode),
        "text": Stage(1100, text.train),
        "diffusion": Stage(10400, diffusion.train),
        "judge": Stage(4500, lambda folder, steps: judge.train(folder, steps, renders(8000))),
        "keypoints": Stage(900, lambda folder, steps: keypoints.train(folder, steps, renders(5000))),
        "export": Stage(0, lambda folder, _: export.export(folder, weights)),
    }


def run(
    folder: Path,
    only: str | None = None,
    scale: float = 1.0,
    amount: int | None = None,
    weights: Path = WEIGHTS,
) -> dict[str, float]:
    """Run all stages (or one); returns the seconds each took. Stages go on from their checkpoints."""
    seconds = {}
    for name, stage in stages(weights, scale).items():
        if only is not None and name != only:
            continue
        start = time.monotonic()
        stage.run(folder, amount if amount is not None else max(2, round(stage.amount * scale)))
        seconds[name] = time.monotonic() - start
        log.info("stage %s took %.1f minutes", name, seconds[name] / 60)
    log.info("in all %.1f minutes", sum(seconds.values()) / 60)
    return seconds
