"""The options the demo runs with; options/train/edlora/ holds the same for the whole cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixshow.config.fuse import FuseOptions
from mixshow.config.load import build
from mixshow.config.train import TrainOptions
from mixshow.puppets.cast import CAST

# Of pictures of one character; more guidance paints over hats and wings, more steps change nothing (docs/log.md).
GUIDANCE, STEPS = 3.0, 15

UNMASKED_WEIGHT = 0.2  # identity is the same from 0.1 to 0.3 (docs/log.md)


def train_options(name: str, *, pictures: Path, output: Path, seed: int = 0) -> TrainOptions:
    """One cast member's training.

    The subject counts most: without a mask small features are lost among the background, without the background it is
    no longer drawn. Min-SNR with a low gamma stresses the noise levels at which shapes are decided; the plain loss
    learns the patterns of a shirt and puts them everywhere. Embeddings learn much faster than networks, so that what
    they can say is in them and little is left to disagree about in fusion (docs/log.md).

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
        "network": {"algo": "locon", "rank": 16, "text_encoder": "attention", "unet": "transformer"},
        "train": {
            "steps": 300,
            "batch_size": 4,
            "lr": {"embedding": 2e-2, "text_encoder": 1e-4, "unet": 2e-3},
        },
        "loss": {"mask": True, "unmasked_weight": UNMASKED_WEIGHT, "noise_offset": 0.01, "min_snr": 1.0},
        "checkpoint": {"every": 300},
        "sample": {
            "prompts": ["a photo of <TOK>", "<TOK> at the beach", "<TOK>, waving, in the snow"],
            "seeds": [0],
            "steps": STEPS,
            "guidance": GUIDANCE,
            "strengths": [0.0, 1.0],
        },
    }
    return build(TrainOptions, values, f"demo: {name}")


def fuse_options(concepts: Sequence[Path], output: Path) -> FuseOptions:
    """The fusion of some concept files with mixshow's defaults."""
    values = {"base": "puppets", "output": str(output), "concepts": [{"file": str(path)} for path in concepts]}
    return build(FuseOptions, values, "demo: fusion")
