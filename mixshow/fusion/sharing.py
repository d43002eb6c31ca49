"""Statistics that several processes recorded on prompts of their own, added up in each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from mixshow.core.processes import Processes
from mixshow.core.seeding import torch_generator
from mixshow.fusion.collect import Statistics
from mixshow.fusion.statistics import LayerInputs, LayerStatistics
from mixshow.fusion.wide import KeptRows


@dataclasses.dataclass(frozen=True)
class _Outline:
    """What a process recorded of a layer, without the numbers.

    Attributes:
        group: number of the inputs, which layers share.
        shape: of the moment.
        sampled: whether rows are kept instead.
    """

    group: int
    shape: tuple[int, ...]
    rows: int
    resolution: float
    sampled: bool


def summed(own: Statistics, processes: Processes, device: torch.device, kept_rows: int) -> Statistics:
    """What all processes recorded together; layers that share their inputs share one object, as in each of them.

    Args:
        own: what this process recorded; empty where it had no prompt.
        device: for moments of layers that this process has none of.
        kept_rows: of inputs of which rows are kept, at most.
    """
    if processes.count == 1:
        return own
    every = processes.gathered(_outlines(own))
    # A process without a picture has texts' layers only: what a layer is like, the first that has it says.
    known: dict[str, tuple[int, _Outline]] = {}
    for number, each in enumerate(every):
        for path, outline in each.items():
            known.setdefault(path, (number, outline))
    shared: dict[tuple[int, int], LayerInputs] = {}
    for path, (number, outline) in known.items():
        group = number, outline.group
        if group in shared:
            continue
        if outline.sampled:
            parts = [each for each in processes.gathered(own.get(path)) if isinstance(each, KeptRows)]
            shared[group] = joined_rows(parts, kept_rows, path, device)
            continue
        zeros = torch.zeros(outline.shape, dtype=torch.float64, device=device)
        moment = own[path].moment.clone() if path in own else zeros
        processes.add(moment)
        rows = sum(each[path].rows for each in every if path in each)
        shared[group] = LayerStatistics(moment, rows, outline.resolution)
    return {path: shared[number, outline.group] for path, (number, outline) in known.items()}


def _outlines(statistics: Statistics) -> dict[str, _Outline]:
    numbers: dict[int, int] = {}
    return {
        path: _Outline(
            numbers.setdefault(id(each), len(numbers)), tuple(each.shape), each.rows, each.resolution,
            isinstance(each, KeptRows),
        )
        for path, each in statistics.items()
    }  # fmt: skip


def joined_rows(parts: Sequence[KeptRows], limit: int, name: str, device: torch.device) -> KeptRows:
    """A sample of what parts are samples of: all their rows, or of each as many as its share.

    Args:
        limit: most rows kept.
        name: of the layer, so that layers draw numbers of their own.
        device: of the joined sample.
    """
    total = sum(part.rows for part in parts)
    if sum(len(part.kept) for part in parts) <= limit and all(len(part.kept) == part.rows for part in parts):
        return dataclasses.replace(parts[0], kept=torch.cat([part.kept.to(device) for part in parts]), rows=total)
    kept = []
    for number, part in enumerate(parts):
        order = torch.randperm(len(part.kept), generator=torch_generator(0, "joined rows", name, number))
        kept.append(part.kept[order[: limit * part.rows // total].to(part.kept.device)].to(device))
    return dataclasses.replace(parts[0], kept=torch.cat(kept), rows=total)
