"""Rotations of small blocks from unconstrained square matrices, by the Cayley transform.

Of a matrix B, `Q = B - B^T` is skew and `R = (I + Q) (I - Q)^-1` a rotation (Qiu et al. 2023, arXiv 2306.07280).
`R - I = 2 (I - Q)^-1 Q` is formed by itself: near the identity, the difference of the two would be mostly rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-8  # part of the rule by which published files were trained


def rotation_changes(blocks: Tensor, limit: float = 0.0) -> Tensor:
    """`R - I` of every block.

    Args:
        blocks: `[..., b, b]`, any values, in float32 or float64; zeros give no rotation.
        limit: largest Frobenius norm of all blocks' Q together, which are scaled down to it; 0: none.

    Returns:
        `[..., b, b]`, differentiable also at zero.
    """
    skew = blocks - blocks.mT
    if limit > 0:
        skew = skew * (limit / (torch.linalg.vector_norm(skew) + _EPSILON)).clamp(max=1)
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
    return 2 * torch.linalg.solve(identity - skew, skew)
