"""Stage ``text``: the text encoder learns what captions say, as CLIP has before Stable Diffusion reads it.

Trained together with the UNet from nothing, it forgets to tell prompts apart before the UNet has learned to listen
(docs/log.md). So it first learns to name the phrases of a caption ("red hair", "robot", "forest") in its end token's
state and in the padding after it, and stays as it is from then on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel

from mixshow.puppets.backgrounds import BACKGROUNDS
from mixshow.puppets.captions import caption
from mixshow.puppets.networks import TEXT_WIDTH, make_text_encoder
from mixshow.puppets.palette import HAIRS, KINDS, POSES, SHIRTS, TROUSERS
from mixshow.puppets.tokenizer import make_tokenizer
from mixshow.puppets.training.loop import Plan, Trainer, autocast, device, load_average, step_generators
from mixshow.puppets.world import SQUARE, WIDE, sample_scene

STAGE = "text"
_SEED = 404
_BATCH = 96
PHRASES = (
    *(f"{colour} hair" for colour in HAIRS),
    *(f"{colour} shirt" for colour in SHIRTS),
    *(f"{colour} trousers" for colour in TROUSERS),
    *KINDS,
    *BACKGROUNDS,
    *POSES,
    *("puppet", "two", "three", "four", "five"),
)


def make_modules() -> dict[str, nn.Module]:
    """The text encoder and the head that names phrases."""
    return {"text_encoder": make_text_encoder(make_tokenizer()), "head": nn.Linear(TEXT_WIDTH, len(PHRASES))}


def load(folder: Path) -> CLIPTextModel:
    """The trained text encoder (moving average)."""
    modules = make_modules()
    load_average(folder, STAGE, modules)
    encoder = modules["text_encoder"]
    assert isinstance(encoder, CLIPTextModel)
    return encoder.eval().requires_grad_(False)


def phrases_in(text: str) -> list[float]:
    """1 for every phrase the caption contains."""
    return [float(phrase in text) for phrase in PHRASES]


def train(folder: Path, steps: int, stop_at: int | None = None) -> None:
    """Train (or go on training) the text encoder."""
    torch.manual_seed(_SEED)
    on = device()
    modules = {name: module.to(on) for name, module in make_modules().items()}
    tokenizer = make_tokenizer()

    def loss_of(step: int) -> Tensor:
        rng, _ = step_generators(_SEED, step)
        numbers = rng.integers(1 << 31, size=_BATCH).tolist()
        texts = [
            caption(sample_scene(_SEED, number, WIDE if number % 4 == 0 else SQUARE), np.random.default_rng(number))
            for number in numbers
        ]
        batch = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(on)
        wanted = torch.tensor([phrases_in(text) for text in texts], device=on)
        with autocast(on):
            states = modules["text_encoder"](batch).last_hidden_state
            named = modules["head"](states)
        ended = (batch == tokenizer.eos_token_id).float()  # the end token pads too
        errors = F.binary_cross_entropy_with_logits(named.float(), wanted[:, None].expand_as(named), reduction="none")
        return (errors.sum(-1) * ended).sum() / ended.sum()

    Trainer(folder, STAGE, modules, Plan(steps, 1e-3, warmup=50, ema=0.99)).run(loss_of, stop_at)
