"""Memory that a run needs beside its model, compared with what there is before it starts."""

from __future__ import annotations

import psutil
import torch

from mixshow.core.errors import MixshowError
from mixshow.core.progress import log


def free_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free now, and that there are in all, where tensors of a device lie."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(free), int(total)
    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def total_memory(device: torch.device) -> int:
    """Bytes that there are in all where tensors of a device lie."""
    return free_memory(device)[1]


def check_memory(what: str, needed: int, device: torch.device, advice: str) -> None:
    """Say so where a run needs more memory than is free.

    Args:
        what: the part of the run.
        needed: bytes beside the model.
        advice: which option helps.

    Raises:
        MixshowError: it needs more than there is in all.
    """
    free, total = free_memory(device)
    if needed <= free:
        return
    text = (
        f"{what}: needs about {needed / 1e9:.1f} GB of memory beside the model, {free / 1e9:.1f} GB are free; {advice}"
    )
    if needed > total:
        raise MixshowError(text)
    log.warning("%s", text)
