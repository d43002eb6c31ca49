"""Classifier-free guidance (arXiv 2207.12598) and its rescaling (arXiv 2305.08891)."""

from __future__ import annotations

from torch import Tensor


def guided(away: Tensor, towards: Tensor, guidance: float | Tensor, rescale: float = 0.0) -> Tensor:
    """The prediction that guidance makes of two, `[batch, channels, height, width]`.

    Args:
        away: for the negative prompts.
        towards: for the prompts.
        guidance: the factor on their difference, or one for each position, `[height, width]`.
        rescale: how far, 0 to 1, each picture's result is brought back to the deviation that the prompt's own
            prediction has, against pictures that high guidance burns out (the paper's phi; 0.7 there).
    """
    prediction = away + guidance * (towards - away)
    if rescale == 0:
        return prediction
    return prediction * (1 - rescale + rescale * _deviation(towards) / _deviation(prediction))


def _deviation(prediction: Tensor) -> Tensor:
    return prediction.std(dim=(1, 2, 3), keepdim=True)
