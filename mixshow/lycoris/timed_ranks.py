"""Low-rank changes whose ranks depend on the diffusion time: fewer at noisier times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.operation import module_operation


def timed_ranks(timestep: int | Tensor, steps: int, ranks: int, *, least: int = 1, power: float = 1.0) -> Tensor:
    """The ranks in use: the first `floor(((steps - t) / steps)^power (ranks - least)) + least`.

    Args:
        timestep: one number, or `[pictures]`.
        steps: length of the noise schedule.
        ranks: all there are.
        least: in use at the noisiest time.
        power: how fast they are taken away as the noise grows; 1: evenly.

    Returns:
        `[pictures, ranks]` of ones, then zeros.
    """
    times = torch.as_tensor(timestep, dtype=torch.float64, device="cpu").flatten()
    share = ((steps - times) / steps).clamp(0, 1) ** power
    used = (share * (ranks - least)).floor() + least
    return (torch.arange(ranks) < used[:, None]).float()


def change_by_picture(module: nn.Module, x: Tensor, up: Tensor, down: Tensor, mask: Tensor) -> Tensor:
    """`low_rank_change` with ranks of each picture's own.

    Args:
        x: `[batch, ...]`, the batch holding the pictures one after the other, each equally often in a row.
        mask: `[pictures, ranks]`.

    Raises:
        MixshowError: the batch is no multiple of the pictures.
    """
    if len(x) % len(mask):
        raise MixshowError(
            f"expected a batch of {len(mask)} pictures (the timesteps that were set) or a multiple, found {len(x)}"
        )
    groups = int(getattr(module, "groups", 1))
    mask = mask.to(x.dtype).repeat_interleave(len(x) // len(mask), dim=0)
    up, down = up.to(x.dtype), down.to(x.dtype)
    if isinstance(module, nn.Linear):
        hidden = F.linear(x, down)
        return F.linear(hidden * mask.reshape(len(x), *[1] * (x.dim() - 2), -1), up)
    hidden = module_operation(module, x, down.repeat(groups, *[1] * (down.dim() - 1)))
    used = hidden.unflatten(1, (groups, -1)).flatten(3) * mask[:, None, :, None]  # [batch, groups, ranks, places]
    change = up.unflatten(0, (groups, -1)) @ used
    return change.reshape(len(x), -1, *hidden.shape[2:])
