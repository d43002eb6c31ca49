"""What a fusion will take: passes of the models, operations and memory, from prompts, steps and the layers' widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection as Some
from collections.abc import Sequence

from torch import nn

from mixshow.fusion.collect import Collection
from mixshow.fusion.heldout import HeldOutPlan
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.lessons import EMPTY_EVERY, DistillPlan, lesson_prompts
from mixshow.fusion.statistics import is_elementwise

# Layers of these names beside each other read one tensor in all models known here: one moment serves them.
_TOGETHER = ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj")
_BACKWARD = 2  # passes that a backward pass takes as long as


@dataclasses.dataclass(frozen=True)
class Passes:
    """How often models run, counted in single texts and single pictures.

    Attributes:
        text: texts through the text encoders; a prompt with layer-wise tokens is one for each layer.
        unet: pictures at one noise level through the UNet; a backward pass counts as two more.
    """

    text: int = 0
    unet: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.text + other.text, self.unet + other.unet)

    def __mul__(self, times: int) -> Passes:
        return Passes(self.text * times, self.unet * times)


def recording_passes(
    collection: Collection, stages: Some[Stage], members: int, captions: int, layers: int
) -> dict[Stage, Passes]:
    """By stage that has layers to record.

    Args:
        captions: of the anchor; 0 without one.
        layers: readings of a prompt with layer-wise tokens.
    """
    texts = members * len(collection.text_prompts) * layers + captions
    pictures = members * len(collection.picture_prompts)
    states = pictures * layers + captions
    every = {
        Stage.TEXT: Passes(texts),
        Stage.KEY_VALUE: Passes(texts),
        Stage.SPATIAL: Passes(states, (pictures + captions) * collection.steps),
    }
    return {stage: passes for stage, passes in every.items() if stage in stages}


def distilling_passes(plan: DistillPlan, members: int) -> Passes:
    """Of the pictures to learn from with their teachers' predictions, and of the steps."""
    unet = 0
    for number in range(plan.rounds):
        points = members * len(lesson_prompts(plan, number)) * plan.walk_steps
        teachers = 1 if number == 0 else 2  # the base's prediction, and the concept's own of what another model drew
        unet += 2 * points + teachers * points + points // EMPTY_EVERY
    unet += 2 * len(plan.captions) * plan.walk_steps
    return Passes(unet=unet + (1 + _BACKWARD) * plan.steps * plan.batch_size)


def heldout_passes(plan: HeldOutPlan, members: int, fusions: int) -> Passes:
    """Of the concepts' own models, of the base, and of the fused models that are measured."""
    pictures, captions = members * len(plan.prompts), len(plan.captions)
    return Passes(unet=plan.steps * ((2 + fusions) * pictures + (1 + fusions) * captions))


@dataclasses.dataclass(frozen=True)
class Moment:
    """The inputs of layers that read the same, `count` of them of one width (a normalisation's channels)."""

    width: int
    count: int
    outputs: Sequence[int]

    @property
    def bytes(self) -> int:
        """In float64."""
        return 8 * self.count * self.width**2


def moments_of(layers: Sequence[Layer]) -> list[Moment]:
    """The distinct inputs of layers."""
    found: dict[tuple[object, ...], Moment] = {}
    for layer in layers:
        weight = layer.module.weight
        assert isinstance(weight, nn.Parameter)
        elementwise = is_elementwise(layer.module)
        width = (1 if elementwise else weight[0].numel()) + layer.extended
        outer, _, name = layer.path.rpartition(".")
        key = (outer, layer.stage, width) if name in _TOGETHER and not elementwise else (layer.path,)
        before = found.get(key, Moment(width, len(weight) if elementwise else 1, ()))
        found[key] = dataclasses.replace(before, outputs=(*before.outputs, 1 if elementwise else len(weight)))
    return list(found.values())


def stored_bytes(moments: Sequence[Moment], sets: int) -> int:
    """Of all concepts' and the anchor's statistics in their files, in single precision (of text features in double)."""
    return sets * sum(each.bytes // 4 for each in moments)


def solving_operations(moments: Sequence[Moment], rows: int, sets: int) -> float:
    """Of factorising S and of the products with every moment, in double precision.

    Args:
        rows: of a layer's problem at most, where ranks are fewer than outputs.
        sets: concepts, and one more for an anchor.
    """
    total = 0.0
    for each in moments:
        solved = sum(min(rows, outputs) for outputs in each.outputs)
        total += each.count * (each.width**3 + 2 * each.width**2 * solved * (2 * sets + 4))
    return total
