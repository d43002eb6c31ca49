"""How far pictures are while they are denoised."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch.nn import functional

from mixshow.models import Base
from mixshow.models.schedule import as_clean
from mixshow.sampling.generate import to_pictures


@torch.no_grad()
def running_pictures(base: Base, step: dict[str, Any]) -> list[Image.Image]:
    """What the UNet takes the pictures of a batch to become, at half their size: a quarter of the decoder's work.

    Args:
        step: what `denoise` tells its callback.
    """
    noisy = step["noisy"].float()
    clean = as_clean(base, step["prediction"].float(), noisy, step["timestep"])
    smaller = functional.interpolate(clean, scale_factor=0.5, mode="area")
    return to_pictures(base.decode_latents(smaller))
