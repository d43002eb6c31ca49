"""Points of pictures being denoised, at which models are compared: latents, time steps, a model's predictions there."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.edlora.layerwise import layerwise_states
from mixshow.models import Base, PromptStates, make_scheduler, prompt_states
from mixshow.models.schedule import as_noise
from mixshow.sampling.denoise import denoise
from mixshow.sampling.generate import latent_size, start_noise


@dataclasses.dataclass(frozen=True, eq=False)
class Walk:
    """The points of denoising some prompts, with a model's predictions there.

    Attributes:
        points: latents `[prompts, channels, height, width]` as the UNet read them and the time step, for every step.
        predictions: of noise, `[steps, prompts, channels, height, width]`.
        states: of the prompts, as the model read them.
    """

    prompts: Sequence[str]
    points: Sequence[tuple[Tensor, Tensor]]
    predictions: Tensor
    states: PromptStates


def walk(
    base: Base, prompts: Sequence[str], seeds: Sequence[int], steps: int, width: int | None, height: int | None
) -> Walk:
    """Denoise one picture per prompt without guidance.

    Args:
        seeds: of each picture's start noise.
        steps: denoising steps, all of which are points.
        width: pixels; None: the base's native side. `height` likewise.
    """
    points: list[tuple[Tensor, Tensor]] = []
    predictions: list[Tensor] = []

    def observe(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        points.append((arguments[0], arguments[1]))
        predictions.append(as_noise(base, output.sample, arguments[0], arguments[1]))

    rows, columns = latent_size(base, width, height)
    with torch.no_grad():
        states = prompt_states(base, prompts)
    scheduler = make_scheduler(base)
    scheduler.set_timesteps(steps, device=base.device)
    with Attachment() as attachment, torch.no_grad():
        attachment.add_hook(base.unet.register_forward_hook(observe))
        denoise(base, scheduler, start_noise(base, seeds, rows, columns), states)
    return Walk(prompts, points, torch.stack(predictions), states)


@torch.no_grad()
def predict(base: Base, walked: Walk) -> Tensor:
    """A model's predicted noise at the points of a walk, `[steps, prompts, channels, height, width]`."""
    text = prompt_states(base, walked.prompts)
    with layerwise_states(base.unet):
        return torch.stack(
            [
                as_noise(base, base.unet(latents, time, **text.for_unet(latents)).sample, latents, time)
                for latents, time in walked.points
            ]
        )
