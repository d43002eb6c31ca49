"""What a fusion will take: passes of the models, operations and memory, from prompts, steps and the layers' widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection as Some
from collections.abc import Mapping, Sequence

from mixshow.fusion.collect import Collection
from mixshow.fusion.distinct_inputs import DistinctInputs
from mixshow.fusion.heldout import HeldOutPlan
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.lessons import EMPTY_EVERY, DistillPlan, lesson_prompts
from mixshow.fusion.statistics import input_width
from mixshow.lycoris.carrier import own_weight

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
    weighed = 2 + _BACKWARD if collection.sensitive else 1
    every = {
        Stage.TEXT: Passes(texts),
        Stage.KEY_VALUE: Passes(texts),
        Stage.SPATIAL: Passes(states, (pictures + captions) * collection.steps * weighed),
    }
    return {stage: passes for stage, passes in every.items() if stage in stages}


def sequential_passes(collection: Collection, members: int, captions: int, layers: int) -> Passes:
    """Of pictures, and of their points through own and fused model side by side; arguments as above."""
    text = unet = 0
    for sets, prompts, readings in ((members, len(collection.picture_prompts), layers), (bool(captions), captions, 1)):
        points = min(collection.share_of_points(members, captions=readings == 1), prompts * collection.steps)
        pictures = min(points, prompts)
        text += sets * 2 * pictures * readings
        unet += sets * (pictures * collection.steps + 2 * points)
    return Passes(text, unet)


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


def stored_bytes(inputs: Sequence[DistinctInputs], collection: Collection, sets: int) -> int:
    """Of all concepts' and the anchor's statistics in their files, in single precision (of text features in double)."""
    return sets * sum(
        4 * each.kept_elements(collection)
        if each.is_wide(collection)
        else each.elements * (2 if each.stage is Stage.SPATIAL else 4)  # half of them
        for each in inputs
    )


def solved_bytes(layers: Sequence[Layer], ranks: Mapping[str, int]) -> int:
    """Of all layers' changes in double precision, as factors where these are smaller.

    Args:
        ranks: by module path; layers that are not there have wholes.
    """
    total = 0
    for layer in layers:
        outputs, width = len(own_weight(layer.module)), input_width(layer.module) + layer.extended
        rank = ranks.get(layer.path, outputs)
        total += outputs * width if rank >= outputs else rank * (outputs + width)
    return 8 * total


def solving_operations(inputs: Sequence[DistinctInputs], collection: Collection, ranks: int, sets: int) -> float:
    """Of factorising S and of the products with every moment, in double precision.

    Args:
        collection: which says where rows are kept; those layers are solved in the rows' span, where it is smaller.
        ranks: of a layer's problem at most, where they are fewer than outputs.
        sets: concepts, and one more for an anchor.
    """
    total, rows = 0.0, sets * collection.kept_rows
    for each in inputs:
        solved, width = sum(min(ranks, outputs) for outputs in each.outputs), each.width
        if each.is_wide(collection):
            width = min(width, rows)
            # Orthonormal columns and the rows in terms of them, or the moments.
            total += 2.0 * each.width * width * (rows + (2 * width + (sets + 1) * solved if width == rows else 0))
        total += each.count * (width**3 + 2.0 * width**2 * solved * (2 * sets + 4))
    return total
