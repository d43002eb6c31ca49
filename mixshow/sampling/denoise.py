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
from mixshow.sampling.guidance import guided
from mixshow.sampling.guide import Guide, UNetInput
from mixshow.sampling.original import Original
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
    rescale: float = 0.0,
    original: Original | None = None,
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
        rescale: of guidance, 0 to 1; see `guided`.
        original: a picture to begin from; then only the last steps are made, with their own numbers.
        condition: what is added inside the UNet beside text: one condition, or several `Together`.
        before_step: called before each step with its number (from 0) and the number of all.
        callback: called after each step with `step` (from 0), `steps`, `timestep` and `latents`, and with what
            the step's prediction was made of: `noisy` (as the UNet read them) and `prediction`. Where it puts other
            `latents` there, the next step goes on from these.
        generators: one per picture, for schedulers that add noise; without, these draw from torch's global one.
        precision: what the UNet computes in; latents stay in the type they came in.

    Returns:
        Denoised latents, shaped like `latents`.
    """
    with_negative = negative_states is not None and (isinstance(guidance, Tensor) or guidance != 1.0)
    unet = base.unet
    batch = len(latents)
    text = (PromptStates.joined([negative_states, states]) if with_negative else states).to(unet.dtype)  # type: ignore[list-item]
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    keywords = {"generator": list(generators)} if takes_generator and generators is not None else {}
    steps = len(scheduler.timesteps)
    noise, first = latents, 0
    if original is None:
        latents = noise * scheduler.init_noise_sigma
    else:
        latents, first = original.begin(scheduler, noise), original.first_step(scheduler)
    with layerwise_states(unet):
        for step, timestep in list(enumerate(scheduler.timesteps))[first:]:
            if before_step is not None:
                before_step(step, steps)
            halves = torch.cat([latents, latents]) if with_negative else latents
            halves = scheduler.scale_model_input(halves, timestep).to(unet.dtype)
            with autocast(latents.device, precision):
                given = UNetInput(halves, timestep, text, step, steps, with_negative)
                added = {} if condition is None else condition.for_unet(given)
                prediction = unet(halves, timestep, **text.for_unet(halves), **added).sample
            prediction = prediction.to(latents.dtype)
            if with_negative:
                prediction = guided(prediction[:batch], prediction[batch:], guidance, rescale)
            latents = scheduler.step(prediction, timestep, latents, **keywords).prev_sample
            if original is not None:
                latents = original.kept(scheduler, latents, noise, step)
            if callback is not None:
                told = {"step": step, "steps": steps, "latents": latents, "timestep": timestep}
                told |= {"noisy": halves[:batch], "prediction": prediction}
                callback(told)
                latents = told["latents"]
    return latents
