"""Maps of a picture on coarser grids, by the area that every position has of them."""

from __future__ import annotations

import torch
from torch import Tensor


def averaged(values: Tensor, rows: int, columns: int) -> Tensor:
    """The mean of a map over every position of a grid; exact also where positions end inside the map's cells.

    Args:
        values: `[..., height, width]`, each value constant within its cell.

    Returns:
        `[..., rows, columns]`

    Example:
        >>> averaged(torch.tensor([[0.0, 0.0, 3.0]]), 1, 2)
        tensor([[0., 2.]])
    """
    return _averaged_last(_averaged_last(values, columns).mT, rows).mT


def _averaged_last(values: Tensor, positions: int) -> Tensor:
    length = values.shape[-1]
    if positions == length:
        return values
    integral = torch.nn.functional.pad(values.cumsum(-1), (1, 1))
    integral[..., -1] = integral[..., -2]
    edge = torch.arange(positions + 1, device=values.device) * length  # in cells / positions: whole numbers
    cell, rest = edge // positions, (edge % positions).to(values.dtype) / positions
    at_edge = integral[..., cell] + rest * (integral[..., cell + 1] - integral[..., cell])
    return at_edge.diff(dim=-1) * (positions / length)
