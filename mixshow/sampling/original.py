"""Denoising that begins from a picture instead of noise alone (SDEdit, arXiv 2108.01073), in all of it or a part."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Original:
    """What denoising begins from.

    Attributes:
        latents: of the picture, without noise: `[pictures, channels, height, width]`; one serves a whole batch.
        strength: the part of the steps that is made, the last ones, above 0 to 1.0: 1 forgets all but rough colours.
        keep: how much of each latent position stays the picture's at every step, `[height, width]`, 0 to 1; None: 0.
    """

    latents: Tensor
    strength: float
    keep: Tensor | None = None

    def first_step(self, scheduler: SchedulerMixin) -> int:
        """The first of the scheduler's timesteps that is made, counted as diffusers counts it; at least one is."""
        steps = int(scheduler.num_inference_steps)
        return (steps - min(max(int(steps * self.strength), 1), steps)) * int(getattr(scheduler, "order", 1))

    def begin(self, scheduler: SchedulerMixin, noise: Tensor) -> Tensor:
        """The picture's latents with the noise of the first step that is made; tells the scheduler where it begins."""
        first = self.first_step(scheduler)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        return self._noised(scheduler, noise, first)

    def kept(self, scheduler: SchedulerMixin, latents: Tensor, noise: Tensor, step: int) -> Tensor:
        """The latents after step number `step`, the picture's own where they stay."""
        if self.keep is None:
            return latents
        last = step + 1 == len(scheduler.timesteps)
        own = self.latents if last else self._noised(scheduler, noise, step + 1)
        return torch.lerp(latents, own.to(latents).expand_as(latents), self.keep.to(latents))

    def part(self, start: int, end: int) -> Original:
        """Of pictures `start` to `end` (not included) of a larger batch."""
        return self if len(self.latents) == 1 else dataclasses.replace(self, latents=self.latents[start:end])

    def _noised(self, scheduler: Any, noise: Tensor, step: int) -> Tensor:
        """The picture's latents with noise as before step number `step`."""
        time = scheduler.timesteps[step : step + 1].repeat(len(noise))
        noised: Tensor = scheduler.add_noise(self.latents.to(noise).expand_as(noise), noise, time)
        return noised
