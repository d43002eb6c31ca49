"""Peak signal-to-noise ratio."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(pictures: Tensor, references: Tensor) -> Tensor:
    """PSNR of every picture in dB.

    Args:
        pictures: `[batch, channels, height, width]` in -1..1.
        references: the same shape.

    Returns:
        `[batch]`; infinite where a picture equals its reference.

    Example:
        >>> psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)).item()
        20.0
    """
    error = (pictures.double() - references.double()).square().flatten(1).mean(1)
    peak = 2.0  # of values in -1..1
    return 10 * torch.log10(peak**2 / error)
