"""The two-loop recursion of L-BFGS (Nocedal 1980), batched: remembered steps as an approximate inverse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixshow.fusion.triangular import solved_with_factor

Memory = Sequence[tuple[Tensor, Tensor, Tensor]]


def apply_inverse(memory: Memory, gradient: Tensor, factors: Tensor | None) -> Tensor:
    """The approximate inverse of the second derivative, times the gradient, `[layers, out, in]`.

    Args:
        memory: oldest first: steps and the gradient's changes along them, `[layers, out, in]` each, and one over their
            product, `[layers]`.
        gradient: `[layers, out, in]`.
        factors: Cholesky factors of the second derivative that the recursion starts from, lower, `[layers, in, in]`;
            None: a multiple of the identity.
    """
    if not memory:
        return gradient if factors is None else solved_with_factor(gradient.mT, factors).mT
    result, coefficients = gradient, []
    for step, bend, reciprocal in reversed(memory):
        coefficient = reciprocal * inner(step, result)
        coefficients.append(coefficient)
        result = result - scaled(coefficient, bend)
    if factors is None:
        step, bend, reciprocal = memory[-1]
        size = reciprocal * inner(bend, bend)
        result = scaled(torch.where(size > 0, 1 / torch.where(size > 0, size, 1.0), 1.0), result)
    else:
        result = solved_with_factor(result.mT, factors).mT
    for (step, bend, reciprocal), coefficient in zip(memory, reversed(coefficients)):
        result = result + scaled(coefficient - reciprocal * inner(bend, result), step)
    return result


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Of each layer, `[layers]`."""
    return (a * b).sum((-1, -2))


def scaled(factors: Tensor, a: Tensor) -> Tensor:
    """Each layer times its own factor."""
    return factors[:, None, None] * a
