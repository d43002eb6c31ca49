"""Pictures of prompts: start noise from each picture's own seed, denoising, decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.seeding import torch_generator
from mixshow.models import Base, PromptReading, PromptStates, aligned, make_scheduler, read_prompts
from mixshow.sampling.conditions import Condition
from mixshow.sampling.denoise import Callback, denoise
from mixshow.sampling.guide import Guide
from mixshow.sampling.original import Original
from mixshow.sampling.precision import Precision

DEFAULT_SCHEDULER = "DPMSolverMultistepScheduler"
_AS_WRITTEN = PromptReading()


@torch.no_grad()
def sample(
    base: Base,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    negative_prompt: str = "",
    width: int | None = None,
    height: int | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    scheduler: str = DEFAULT_SCHEDULER,
    scheduler_options: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    condition: Condition | None = None,
    callback: Callback | None = None,
    precision: Precision = Precision.AUTO,
    reading: PromptReading = _AS_WRITTEN,
) -> list[Image.Image]:
    """Make one picture per prompt and seed.

    Args:
        prompts: one per picture, concept tokens written as the base's vocabulary knows them.
        seeds: one per picture. A picture depends on its own seed, not on the batch it is made in.
        width: pixels; default: the base's native side.
        height: pixels; default: the base's native side.
        scheduler: a scheduler class of diffusers, with `scheduler_options`.
        batch_size: pictures denoised together.
        condition: adapter features, of one picture for all or of one per prompt.
        callback: see `denoise`.
        reading: how prompts are read.

    Returns:
        RGB pictures in the order of the prompts.

    Raises:
        MixshowError: the size does not fit the base, or there is no such scheduler or option.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"one seed per prompt: {len(prompts)} prompts, {len(seeds)} seeds")
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        chosen = slice(start, start + batch_size)
        states = read_prompts(base, prompts[chosen], reading)
        negative = None
        if guidance != 1:
            negative = read_prompts(base, [negative_prompt], reading).expanded(len(states))
            states, negative = aligned([states, negative])
        latents = latents_of_states(
            base,
            states,
            negative,
            seeds=seeds[chosen],
            noise=start_noise(base, seeds[chosen], *latent_size(base, width, height)),
            steps=steps,
            guidance=guidance,
            scheduler=scheduler,
            scheduler_options=scheduler_options,
            condition=condition and condition.part(start, start + batch_size),
            callback=callback,
            precision=precision,
        )
        pictures += to_pictures(base.decode_latents(latents))
    return pictures


@torch.no_grad()
def latents_of_states(
    base: Base,
    states: PromptStates,
    negative_states: PromptStates | None,
    *,
    seeds: Sequence[int],
    noise: Tensor,
    steps: int,
    guidance: float | Tensor,
    rescale: float = 0.0,
    scheduler: str = DEFAULT_SCHEDULER,
    scheduler_options: Mapping[str, Any] | None = None,
    original: Original | None = None,
    condition: Guide | None = None,
    before_step: Callable[[int, int], object] | None = None,
    callback: Callback | None = None,
    precision: Precision = Precision.AUTO,
) -> Tensor:
    """Latents of one batch of pictures, denoised with a scheduler by its name.

    Args:
        seeds: of the noise that some schedulers add at every step.
        noise: start noise, `[pictures, channels, height, width]`.
        guidance: one factor, or one for each latent position, `[height, width]`.
        rescale: see `denoise`, as for `original`, `condition`, `before_step` and `callback`.
    """
    sampler = make_scheduler(base, scheduler, **(scheduler_options or {}))
    sampler.set_timesteps(steps, device=base.device)
    return denoise(
        base,
        sampler,
        noise,
        states,
        negative_states,
        guidance=guidance,
        rescale=rescale,
        original=original,
        condition=condition,
        before_step=before_step,
        callback=callback,
        generators=step_generators(seeds),
        precision=precision,
    )


def latent_size(base: Base, width: int | None = None, height: int | None = None) -> tuple[int, int]:
    """Height and width in latent positions of a picture of `width` x `height` pixels (default: the native side).

    Raises:
        MixshowError: a side is no multiple of what the base can make.
    """
    topology = base.topology
    native = topology.sample_size * topology.latent_factor
    for name, side in (("width", width), ("height", height)):
        problem = side_problem(name, native if side is None else side, topology.size_multiple)
        if problem:
            raise MixshowError(problem)
    return (height or native) // topology.latent_factor, (width or native) // topology.latent_factor


def side_problem(name: str, side: int, multiple: int) -> str | None:
    """What is wrong with a picture's side, in pixels; None when nothing is."""
    if side > 0 and side % multiple == 0:
        return None
    near = max(multiple, round(side / multiple) * multiple)
    return f"{name}: expected a multiple of {multiple} pixels for this base, found {side}; the nearest is {near}"


def start_noise(base: Base, seeds: Sequence[int], height: int, width: int) -> Tensor:
    """Start noise `[seeds, channels, height, width]` in latent positions, each picture's from its own seed."""
    shape = (base.topology.latent_channels, height, width)
    noise = [torch.randn(shape, generator=torch_generator(seed, "start noise")) for seed in seeds]
    return torch.stack(noise).to(base.device)


def step_generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """For each picture, the generator of the noise that some schedulers add at every step."""
    return [torch_generator(seed, "step noise") for seed in seeds]


def to_pictures(images: Tensor) -> list[Image.Image]:
    """RGB pictures of `[batch, 3, height, width]` in -1..1."""
    values = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(value) for value in values]


def pixels_of(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as autoencoders read them, `[pictures, 3, height, width]` in -1..1."""
    values = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])
    return torch.from_numpy(values).permute(0, 3, 1, 2) / 127.5 - 1
