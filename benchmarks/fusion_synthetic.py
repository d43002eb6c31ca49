"""Statistics of a model's layers without a model's passes, for benchmarks of solving alone.

Moments are those of as many random rows as a text has tokens or more, whose directions fall off as those of features
do, and a little of all directions. Solving takes as long whatever the numbers are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.statistics import DOUBLE_RESOLUTION, SINGLE_RESOLUTION, LayerStatistics, input_width
from mixshow.models import Base

ROWS = 256
DECAY = 0.5  # of a direction's size with its number, as a power
REST = 1e-4  # of all directions, as a share of the mean square
TOGETHER = ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj")  # read one input where they are beside each other


def without_weights(build: Callable[[], Base]) -> Base:
    """A base of a shape whose weights, never read or written, take no memory."""
    with torch.device("meta"):
        base = build()
    for model in base.models.values():
        model.to_empty(device="cpu")
    return dataclasses.replace(base, vae=base.vae.to_empty(device="cpu"))


def statistics_of(layers: Mapping[Stage, Sequence[Layer]], number: int) -> dict[Stage, dict[str, LayerStatistics]]:
    """Of one concept: by stage and module path; layers that read the same share them."""
    generator = torch.Generator().manual_seed(number)
    moments: dict[tuple[Stage, int], Tensor] = {}
    found: dict[Stage, dict[str, LayerStatistics]] = {}
    for stage, own in layers.items():
        shared: dict[tuple[str, int], LayerStatistics] = {}
        resolution = SINGLE_RESOLUTION if stage is Stage.SPATIAL else DOUBLE_RESOLUTION
        for layer in own:
            width = input_width(layer.module)
            if (stage, width) not in moments:
                moments[stage, width] = moment(width, generator)
            outer, _, name = layer.path.rpartition(".")
            key = outer if name in TOGETHER else layer.path, width
            if key not in shared:
                shared[key] = LayerStatistics(moments[stage, width], ROWS, resolution)
            found.setdefault(stage, {})[layer.path] = shared[key]
    return found


def moment(width: int, generator: torch.Generator) -> Tensor:
    """Of all rows, `[width, width]`, float64."""
    rows = torch.randn(ROWS, width, generator=generator) * torch.arange(1, ROWS + 1)[:, None] ** -DECAY
    product = (rows.T @ rows).double()
    return product + REST * product.diagonal().mean() * torch.eye(width, dtype=torch.float64)
