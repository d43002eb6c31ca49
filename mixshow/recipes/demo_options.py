"""The options the demo runs with; options/train/edlora/ holds the same for the whole cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixshow.config.fuse import FuseOptions
from mixshow.config.load import build
from mixshow.config.train import TrainOptions
from mixshow.puppets.cast import CAST


def train_options(name: str, *, pictures: Path, output: Path, seed: int = 0) -> TrainOptions:
    """One cast member's training.

    Identity goes into the embeddings first: a high rate there, low ones for the networks. Such concepts lose less
    when they are fused (docs/performance.md).

    Args:
        pictures: folder with `image`, `mask` and `caption`, as `mixshow puppets cast` writes it.
    """
    values: Mapping[str, Any] = {
        "base": "puppets",
        "output": str(output),
        "seed": seed,
        "concept": {"tokens": f"<{name}1>+<{name}2>", "initialiser": f"<rand-0.1>+{CAST[name].kind}"},
        "data": {
            "images": str(pictures / "image"),
            "masks": str(pictures / "mask"),
            "captions": str(pictures / "caption"),
            "size": 128,
            "transform": "centre_crop",
            "variants": 1,
        },
        "network": {"algo": "locon", "rank": 4, "text_encoder": "attention", "unet": "attention"},
        "train": {
            "steps": 300,
            "batch_size": 4,
            "lr": {"embedding": 2e-2, "text_encoder": 5e-5, "unet": 6e-4},
        },
        "loss": {"mask": True, "noise_offset": 0.01},
        "checkpoint": {"every": 150},
        "sample": {
            "prompts": ["a photo of <TOK>", "<TOK> at the beach", "<TOK>, waving, in the snow"],
            "seeds": [0, 1],
            "guidance": 5.0,
        },
    }
    return build(TrainOptions, values, f"demo: {name}")


def fuse_options(concepts: Sequence[Path], output: Path) -> FuseOptions:
    """The fusion of some concept files with mixshow's defaults."""
    values = {"base": "puppets", "output": str(output), "concepts": [{"file": str(path)} for path in concepts]}
    return build(FuseOptions, values, "demo: fusion")
