"""What algorithms need of a layer: its kind and weight, the ranks it can have, mixing its channels."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import weight_of

# Multiplications in the time that an element is written and read again (float32 on one core of a CPU): counted where
# an algorithm's products are so small that moving their results takes longer than making them.
MOVE = 28

# The help of an option that several algorithms have.
RANK_STABILISED = {"rs_lora": "scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732)"}


def matrix_of(module: nn.Module) -> Tensor:
    """The weight `[out, in / groups, *kernel]` of a linear layer or convolution.

    Raises:
        MixshowError: a module of another kind, or without a weight that can be changed.
    """
    if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise MixshowError(f"expected a Linear, Conv1d, Conv2d or Conv3d, found {type(module).__name__}")
    return weight_of(module)


def check_rank(weight: Tensor, dim: int, most: int) -> None:
    """Refuse ranks above the layer's.

    Raises:
        MixshowError: dim is above `most`.
    """
    if dim > most:
        raise MixshowError(
            f"expected a rank of at most {most} for a weight {list(weight.shape)}, found {dim}; give the module a "
            "smaller one (dim, conv_dim, or an algorithm map) or exclude it"
        )


def fits(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a file's tensor is a matrix of this shape, its axes from the second on taken together."""
    return tensor.dim() > 1 and tensor.flatten(1).shape == (shape[0], math.prod(shape[1:]))


def pointwise(x: Tensor, matrix: Tensor, space: int) -> Tensor:
    """A matrix `[a, b]` on the channels of `[..., b]`, or of `[batch, b, *space]` with that many spatial axes."""
    if space == 0:
        return F.linear(x, matrix)
    return (F.conv1d, F.conv2d, F.conv3d)[space - 1](x, matrix.reshape(*matrix.shape, *[1] * space))
