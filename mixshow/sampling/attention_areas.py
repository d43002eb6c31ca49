"""Areas from attention maps: one for each map, none twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST = 0.2  # of the largest piece's attention, that a piece of the picture must have to be somebody
_FLAT = 0.1  # a mean of maps that varies less shows nobody


def areas_of_maps(maps: Tensor, thresholds: Sequence[float]) -> list[Tensor]:
    """For each map an area in one piece; areas do not overlap.

    Maps are smoothed over 3 x 3 positions and scaled to 0..1. Where their mean falls into as many pieces as there are
    maps, or more, each map gets one, those first that differ most: concepts that a prompt names together attend to each
    other's places as well, so that no map alone tells them apart. Otherwise a position belongs to the map that is
    largest there, and of what belongs to a map the largest piece is kept.

    Args:
        maps: `[areas, rows, columns]`.
        thresholds: for each map the part of the largest value from which on a position is inside; for pieces the mean.

    Returns:
        `[rows, columns]` of bool for each; of nothing for a map that has no place.
    """
    scaled = _scaled(functional.avg_pool2d(maps[None], 3, stride=1, padding=1, count_include_pad=False)[0])
    found = _figures(scaled.mean(0), sum(thresholds) / len(thresholds))
    if len(found) >= len(maps) and scaled.flatten(1).amax(1).all():
        return _divided(scaled, found)
    owner = scaled.argmax(0)
    own = ((owner == i) & (scaled[i] >= threshold) for i, threshold in enumerate(thresholds))
    return [next(iter(pieces(area)), area) for area in own]


def pieces(inside: Tensor) -> list[Tensor]:
    """The pieces of `[rows, columns]` of bool that hang together, corners included, the largest first."""
    label = torch.arange(1, inside.numel() + 1, dtype=torch.float64).view(inside.shape) * inside
    while True:
        spread = functional.max_pool2d(label[None], 3, stride=1, padding=1)[0] * inside
        if torch.equal(spread, label):
            break
        label = spread
    labels, sizes = label[inside].unique(return_counts=True)
    return [label == labels[i] for i in sizes.argsort(descending=True, stable=True).tolist()]


def _figures(mean: Tensor, threshold: float) -> list[Tensor]:
    """The pieces of the maps' mean, without specks; none where it hardly varies."""
    if mean.max() - mean.min() < _FLAT:
        return []
    together = _scaled(mean[None])[0]
    found = pieces(together >= threshold)
    weight = [float(together[piece].sum()) for piece in found]
    return [piece for piece, own in zip(found, weight) if own >= _SMALLEST * max(weight)]


def _divided(scaled: Tensor, found: Sequence[Tensor]) -> list[Tensor]:
    """One piece for each map: the pair that prefers each other most first."""
    means = torch.stack([scaled[:, piece].mean(1) for piece in found], dim=1)  # [maps, pieces]
    liking = means / means.sum(1, keepdim=True)
    liking = liking / liking.sum(0)
    areas: dict[int, Tensor] = {}
    for _ in range(len(scaled)):
        number, piece = divmod(int(liking.argmax()), len(found))
        areas[number] = found[piece]
        liking[number], liking[:, piece] = -1, -1
    return [areas[number] for number in range(len(scaled))]


def _scaled(maps: Tensor) -> Tensor:
    """Each map from 0 to 1; one that is the same everywhere is 0."""
    lowest, highest = maps.flatten(1).amin(1), maps.flatten(1).amax(1)
    reach = (highest - lowest).clamp(min=torch.finfo(maps.dtype).tiny)
    return (maps - lowest[:, None, None]) / reach[:, None, None]
