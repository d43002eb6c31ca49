"""A second, larger pass over a picture: what the first pass made is enlarged, noised in part, and denoised again."""

from __future__ import annotations

import dataclasses
from enum import Enum

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mixshow.models import Base
from mixshow.sampling.generate import pixels_of, to_pictures


class Upscale(Enum):
    """What is enlarged: `LATENT`, bilinearly (free, soft; takes a strength of half and more), or the `PICTURE`."""

    LATENT = "latent"
    PICTURE = "picture"


@dataclasses.dataclass(frozen=True)
class SecondPass:
    """A second pass.

    Attributes:
        size: (width, height) in pixels.
        strength: see `Original`.
        steps: of the whole way, of which `strength` is made; None: as many as the first pass.
    """

    size: tuple[int, int]
    strength: float = 0.5
    steps: int | None = None
    upscale: Upscale = Upscale.LATENT


@torch.no_grad()
def enlarged(base: Base, latents: Tensor, size: tuple[int, int], upscale: Upscale) -> Tensor:
    """Latents of pictures at another size, `[pictures, channels, height, width]`.

    Args:
        size: (width, height) in pixels.
    """
    if upscale is Upscale.LATENT:
        factor = base.topology.latent_factor
        grid = (size[1] // factor, size[0] // factor)
        return functional.interpolate(latents, grid, mode="bilinear", align_corners=False)
    found = []
    for latent in latents:  # one at a time: pictures take more memory than their latents
        (picture,) = to_pictures(base.decode_latents(latent[None]))
        larger = picture.resize(size, Image.Resampling.LANCZOS)
        found.append(base.encode_images(pixels_of([larger])).to(latents))
    return torch.cat(found)
