"""How a training loop runs: steps, rates, schedule, checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class TrainerOptions:
    """
    Attributes:
        steps: optimizer steps.
        batch_size: pictures per process and forward pass.
        accumulation: forward passes per optimizer step.
        rates: learning rates of `embedding`, `text_encoder` and `unet`.
        block_rates: factors on the UNet's rate, one per block (`lycoris.blocks`); None: 1.
        schedule: a schedule's name in `diffusers.optimization`.
        warmup: steps of rising rates.
        clip_norm: largest norm of all gradients together; None: not clipped.
        embedding_norm_stop: embeddings freeze for good once their mean norm reaches this; None: never.
        noise_offset: standard deviation of noise that is equal over a latent channel.
        checkpoint_every: steps; the last step always writes one.
        keep: checkpoints that stay.
    """

    steps: int
    batch_size: int
    rates: Mapping[str, float]
    block_rates: Sequence[float] | None = None
    accumulation: int = 1
    schedule: str = "linear"
    warmup: int = 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = None
    embedding_norm_stop: float | None = None
    noise_offset: float = 0.0
    gradient_checkpointing: bool = False
    checkpoint_every: int = 1000
    keep: int = 2
    seed: int = 0
