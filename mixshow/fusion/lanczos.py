"""The largest eigenvalue of a matrix that is known by its products (Lanczos 1950)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LANCZOS_STEPS = 12
_SETTLED = 1e-3  # share by which a step still raises it, below which further ones are not worth their products


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """Of a symmetric, positive definite matrix, to within some per cent from below.

    Args:
        apply: its product with a vector `[width]`.
        like: a matrix of the same width, type and device.
    """
    width = like.shape[-1]
    vector = torch.randn(width, dtype=like.dtype, generator=torch.Generator().manual_seed(0)).to(like)
    basis, projected = like.new_zeros(0, width), torch.zeros(_LANCZOS_STEPS, _LANCZOS_STEPS, dtype=torch.float64)
    found = 0.0
    for step in range(min(_LANCZOS_STEPS, width)):
        vector = vector - basis.T @ (basis @ vector)
        vector = vector / vector.norm()
        basis = torch.cat([basis, vector[None]])
        vector = apply(vector)
        projected[: step + 1, step] = projected[step, : step + 1] = (basis @ vector).cpu()
        before, found = found, float(torch.linalg.eigvalsh(projected[: step + 1, : step + 1])[-1])
        if found - before < _SETTLED * found:
            break
    return found
