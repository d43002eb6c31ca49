"""Solving with a Cholesky factor, which `torch.cholesky_solve` copies at each call."""

from __future__ import annotations

import torch
from torch import Tensor


def solved_with_factor(columns: Tensor, factor: Tensor) -> Tensor:
    """`S^-1 columns` for columns `[..., n, any]` and the lower factor of S, `[..., n, n]`, in its precision."""
    half = torch.linalg.solve_triangular(factor, columns.to(factor.dtype), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).to(columns.dtype)
