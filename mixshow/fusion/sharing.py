"""Statistics that several processes recorded on prompts of their own, added up in each of them."""

from __future__ import annotations

import torch

from mixshow.core.processes import Processes
from mixshow.fusion.collect import Statistics
from mixshow.fusion.statistics import LayerStatistics


def summed(own: Statistics, processes: Processes, device: torch.device) -> Statistics:
    """What all processes recorded together; layers that share their inputs share one object, as in each of them.

    Args:
        own: what this process recorded; empty where it had no prompt.
        device: for moments of layers that this process has none of.
    """
    if processes.count == 1:
        return own
    every = processes.gathered(_outline(own))
    outline = next((each for each in every if each), {})
    shared: dict[int, LayerStatistics] = {}
    for path, (group, shape, _, resolution) in outline.items():
        if group not in shared:
            moment = own[path].moment.clone() if own else torch.zeros(shape, dtype=torch.float64, device=device)
            processes.add(moment)
            rows = sum(each[path][2] for each in every if each)
            shared[group] = LayerStatistics(moment, rows, resolution)
    return {path: shared[group] for path, (group, *_) in outline.items()}


def _outline(statistics: Statistics) -> dict[str, tuple[int, tuple[int, ...], int, float]]:
    """By module path which inputs it reads, as a number, their moment's shape, rows and resolution."""
    numbers: dict[int, int] = {}
    return {
        path: (numbers.setdefault(id(each), len(numbers)), tuple(each.shape), each.rows, each.resolution)
        for path, each in statistics.items()
    }
