"""Low-rank changes on activations: `up (down x)`, and when forming the weight is cheaper than that."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.lycoris.operation import module_operation

_POINTWISE = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


def low_rank_change(module: nn.Module, x: Tensor, up: Tensor, down: Tensor, mid: Tensor | None = None) -> Tensor:
    """What a weight change `up @ down` adds to the output of a linear layer or convolution.

    Args:
        x: the module's input.
        up: `[out, r]`.
        down: `[r, *weight.shape[1:]]`; `[r, in]` where there is a `mid`.
        mid: Tucker core `[r, r, *kernel]` between them.
    """
    up, down = up.to(x.dtype), down.to(x.dtype)
    if isinstance(module, nn.Linear):
        return F.linear(F.linear(x, down), up)
    groups, axes = int(module.groups), x.dim() - 2  # type: ignore[arg-type]
    if mid is None:
        hidden = module_operation(module, x, _per_group(down, groups))
    else:
        hidden = _pointwise(x, _per_group(down, groups), groups, axes)
        hidden = module_operation(module, hidden, _per_group(mid.to(x.dtype), groups))
    return _pointwise(hidden, up, groups, axes)


def _pointwise(x: Tensor, weight: Tensor, groups: int, axes: int) -> Tensor:
    return _POINTWISE[axes + 2](x, weight.reshape(*weight.shape[:2], *[1] * axes), groups=groups)


def _per_group(weight: Tensor, groups: int) -> Tensor:
    """Every group of the input goes through the same factor."""
    return weight if groups == 1 else weight.repeat(groups, *[1] * (weight.dim() - 1))


def weight_is_cheaper(weight: Tensor, positions: int, per_position: float, to_build: float) -> bool:
    """Whether the changed weight in one operation needs fewer multiplications than a change of activations beside it.

    Training does each product of activations thrice, builds a weight twice, sends its gradient back through the build
    (two more) and has one gradient of the weight's size, which activations spare.

    Args:
        weight: the module's.
        positions: how often the weight is applied.
        per_position: multiplications for the change of one position's output.
        to_build: multiplications for the weight's change.
    """
    if torch.is_grad_enabled():
        return positions * weight.numel() + 4 * to_build < 3 * positions * per_position
    return to_build < positions * per_position
