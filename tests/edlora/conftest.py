"""A folder of small training pictures, and trainers on the tiny base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixshow.edlora.data import TrainingData
from mixshow.edlora.embedding import ConceptEmbedding
from mixshow.edlora.initialiser import initial_vectors
from mixshow.edlora.pictures import find_pictures
from mixshow.edlora.placement import placed_targets
from mixshow.edlora.processes import make_accelerator
from mixshow.edlora.step import LossOptions
from mixshow.edlora.trainer import Trainer
from mixshow.edlora.trainer_options import TrainerOptions
from mixshow.edlora.transforms import TransformOptions
from mixshow.lycoris import create_network
from mixshow.models.base import Base

TOKENS = ["<pip1>", "<pip2>"]
RATES = {"embedding": 1e-2, "text_encoder": 1e-3, "unet": 1e-3}


def write_pictures(folder: Path, count: int = 3) -> Path:
    """`image`, `mask` and `caption` folders of random pictures of different sizes, a white box as the subject."""
    rng = np.random.default_rng(0)
    for part in ("image", "mask", "caption"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        width, height = 90 + 20 * i, 120 - 10 * i
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "image" / f"{i:02d}.png")
        mask = Image.new("L", (width, height))
        mask.paste(255, (width // 4, height // 4, width // 2, height * 3 // 4))
        mask.save(folder / "mask" / f"{i:02d}.png")
        (folder / "caption" / f"{i:02d}.txt").write_text("photo of a <TOK>, red hat, beach\n")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data")


@pytest.fixture
def make_data(pictures: Path):
    """A function that makes the training data; keywords as for `TrainingData`."""

    def make(**keywords) -> TrainingData:
        found, problems = find_pictures(
            pictures / "image",
            masks=pictures / "mask",
            captions=pictures / "caption",
            prompt="<TOK>",
            tokens=TOKENS,
        )
        assert not problems
        settings = {"transform": "human_crop", "options": TransformOptions(64), "shuffle_tags": True, "flip": True}
        return TrainingData(found, TOKENS, **(settings | keywords))

    return make


@pytest.fixture
def make_trainer(tiny: Base, make_data, tmp_path: Path):
    """A function that makes a fresh trainer on the tiny base; keywords as for `TrainerOptions`."""

    def make(*, folder: str = "run", on_checkpoint=None, agreement=None, loss=None, **keywords) -> Trainer:
        embedding = ConceptEmbedding(initial_vectors(tiny, TOKENS, "<rand-0.1>+boy"))
        targets = [
            *placed_targets("text_encoder", tiny.text_encoder, "attention"),
            *placed_targets("unet", tiny.unet, "attention"),
        ]
        network = create_network(tiny.models, targets=targets, dim=2, generator=torch.Generator().manual_seed(0))
        settings = {"steps": 4, "batch_size": 2, "rates": RATES, "noise_offset": 0.05, "checkpoint_every": 2}
        return Trainer(
            tiny,
            embedding,
            network,
            make_data(),
            TrainerOptions(**(settings | keywords)),
            loss or LossOptions(masked=True, attention_weight=0.01),
            folder=tmp_path / folder,
            accelerator=make_accelerator("no"),
            agreement=agreement,
            on_checkpoint=on_checkpoint,
        )

    return make
