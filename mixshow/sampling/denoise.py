"""The denoising loop: classifier-free guidance over any scheduler of diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from mixshow.edlora.layerwise import layerwise_states
from mixshow.models import Base, PromptStates
from mixshow.sampling.guide import Guide, Reading
from mixshow.sampling.precision import Precision, autocast

Callback = Callable[[dict[str, Any]], object]


@torch.no_grad()
def denoise(
    base: Base,
    scheduler: SchedulerMixin,
    latents: Tensor,
    states: PromptStates,
    negative_states: PromptStates | None = None,
    *,
    guidance: float | Tensor = 1.0,
    condition: Guide | None = None,
    before_step: Callable[[int, int], object] | None = None,
    callback: Callback | None = None,
    generators: Sequence[torch.Generator] | None = None,
    precision: Precision = Precision.FP32,
) -> Tensor:
    """From start noise to latents of pictures.

    Args:
        scheduler: with its timesteps set; it keeps state, so set them again before another call.
        latents: start noise of unit variance, `[batch, channels, height, width]`.
        states: of one prompt per picture.
        negative_states: what guidance leads away from, of the same shape. None, or a guidance of 1: not computed.
        guidance: the factor on the difference between the two predictions (classifier-free, arXiv 2207.12598), or one
            for each position, `[height, width]`.
        condition: what is added inside the UNet beside text: one condition, or several `Together`.
        before_step: called before each step with its number (from 0) and the number of all.
        callback: called after each step with `step` (from 0), `steps`, `timestep` and `latents`; when it puts others
            there, the next step goes on from these.
        generators: one per picture, for schedulers that add noise; without, these draw from torch's global one.
        precision: what the UNet computes in; latents stay in the type they came in.

    Returns:
        Denoised latents, shaped like `latents`.
    """
    guided = negative_states is not None and (isinstance(guidance, Tensor) or guidance != 1.0)
    unet = base.unet
    batch = len(latents)
    text = (PromptStates.joined([negative_states, states]) if guided else states).to(unet.dtype)  # type: ignore[list-item]
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    keywords = {"generator": list(generators)} if takes_generator and generators is not None else {}
    steps = len(scheduler.timesteps)
    latents = latents * scheduler.init_noise_sigma
    with layerwise_states(unet):
        for step, timestep in enumerate(scheduler.timesteps):
            if before_step is not None:
                before_step(step, steps)
            halves = torch.cat([latents, latents]) if guided else latents
            halves = scheduler.scale_model_input(halves, timestep).to(unet.dtype)
            with autocast(latents.device, precision):
                reading = Reading(halves, timestep, text, step, steps, guided)
                added = {} if condition is None else condition.for_unet(reading)
                noise = unet(halves, timestep, **text.for_unet(halves), **added).sample
            noise = noise.to(latents.dtype)
            if guided:
                away, towards = noise[:batch], noise[batch:]
                noise = away + guidance * (towards - away)
            latents = scheduler.step(noise, timestep, latents, **keywords).prev_sample
            if callback is not None:
                told = {"step": step, "steps": steps, "timestep": timestep, "latents": latents}
                callback(told)
                latents = told["latents"]
    return latents
