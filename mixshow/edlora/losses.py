"""The two terms of the training loss: masked noise prediction and attention regularisation (Mix-of-Show)."""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor


def masked_error(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Squared error per picture, summed over channels and averaged over the masked area.

    Args:
        prediction: `[batch, channels, h, w]`; `target` likewise.
        mask: `[batch, 1, h, w]`, what the error counts at each place, 0 to 1.

    Returns:
        `[batch]`; 0 for a picture whose mask is empty (a crop can miss the subject).
    """
    error = (prediction.float() - target.float()).square() * mask
    return error.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1.0)


def attention_error(maps: Iterable[Tensor], mask: Tensor, *, identity: bool) -> Tensor:
    """How far the concept tokens' attention lies outside the subject, added over resolutions.

    All tokens but the last describe, the last one names the subject. Each token's map is divided by its own maximum
    over batch and space.

    Args:
        maps: per resolution `[batch, tokens, h, w]`.
        mask: the subject, `[batch, 1, H, W]`, 0 or 1.
        identity: the subject's map shall equal the mask; otherwise all maps shall only stay inside it.

    Returns:
        A scalar; 0 when it has no value (a mask without an outside).
    """
    total = mask.new_zeros(())
    for attention in maps:
        small = F.interpolate(mask, size=attention.shape[-2:], mode="nearest")[:, 0]
        outside = (small == 0).float()
        relative = attention.float() / attention.float().amax(dim=(0, 2, 3), keepdim=True)
        for token in range(attention.shape[1]):
            if identity and token == attention.shape[1] - 1:
                total = total + F.mse_loss(relative[:, token], small)
            else:
                total = total + (relative[:, token] * outside).sum() / outside.sum()
    # Not torch.where: its gradient at a value that is not a number is not one either.
    return total if total.isfinite() else mask.new_zeros(())
