"""Which layers read the same, told by their names before anything has run: one moment serves them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from mixshow.fusion.collect import Collection
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.statistics import input_width, is_elementwise
from mixshow.lycoris.carrier import own_weight

# Layers of these names beside each other read one tensor in all models known here.
_TOGETHER = ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj")


@dataclasses.dataclass(frozen=True)
class DistinctInputs:
    """Inputs of layers that read the same.

    Attributes:
        stage: of the layers.
        width: with the constant 1 where there is one.
        count: of moments: 1, or a normalisation's channels.
        outputs: of each of the layers.
    """

    stage: Stage
    width: int
    count: int
    outputs: Sequence[int]

    @property
    def elements(self) -> int:
        """Of their moments."""
        return self.count * self.width**2

    def kept_elements(self, collection: Collection) -> int:
        """Of the rows in their place, which every layer keeps for itself."""
        return len(self.outputs) * self.width * collection.kept_rows

    def is_wide(self, collection: Collection) -> bool:
        """Whether rows are kept in place of the moment."""
        return self.width > collection.moment_width


def distinct_inputs(layers: Iterable[Layer], collection: Collection) -> list[DistinctInputs]:
    """Of some layers, in their order; where rows are weighed every spatial layer has inputs of its own."""
    found: dict[tuple[object, ...], DistinctInputs] = {}
    for layer in layers:
        elementwise = is_elementwise(layer.module)
        width, channels = input_width(layer.module) + layer.extended, len(own_weight(layer.module))
        outer, _, name = layer.path.rpartition(".")
        weighed = collection.sensitive and layer.stage is Stage.SPATIAL
        together = name in _TOGETHER and not elementwise and not weighed
        key = (outer, layer.stage, width) if together else (layer.path,)
        before = found.get(key, DistinctInputs(layer.stage, width, channels if elementwise else 1, ()))
        found[key] = dataclasses.replace(before, outputs=(*before.outputs, 1 if elementwise else channels))
    return list(found.values())
