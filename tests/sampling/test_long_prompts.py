"""Prompts of several windows in scenes: what one has does not depend on how long the others are."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mixshow.models import Base, PromptReading
from mixshow.sampling.generate import sample
from mixshow.sampling.precision import Precision
from mixshow.sampling.regions import PixelBox, Region
from mixshow.sampling.scene import Scene
from tests.sampling.test_compose import LEFT, RIGHT, SIZE, WHOLE, close, latents_of

LONG = "a red dog on the beach , " * 6  # two windows
LONGER = "a blue hat in the rain , " * 9  # three


def scene_of(*regions: Region) -> Scene:
    reading = PromptReading(weights=True, windows=True)
    return Scene("a dog", SIZE, "red", regions, steps=2, guidance=3.0, precision=Precision.FP32, reading=reading)


@pytest.mark.parametrize("name", ["tiny", "sd2"])  # XL's pooled state stays the scene's
def test_a_long_prompt_over_everything_is_that_prompt_alone(name: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(name)
    regions = Region(WHOLE, LONG, LONGER), Region(PixelBox(0, 0, 1, 1), "a toy")  # the other has no position
    alone = dataclasses.replace(scene_of(), prompt=LONG, negative_prompt=LONGER)
    assert close(latents_of(base, scene_of(*regions))[-1], latents_of(base, alone)[-1])


def test_neighbours_lengths_change_nothing_elsewhere(each_base: Base) -> None:
    short = latents_of(each_base, scene_of(Region(LEFT, "a boy"), Region(RIGHT, LONG)))
    unseen = Region(PixelBox(0, 0, 1, 1), LONGER)
    beside = latents_of(each_base, scene_of(Region(LEFT, "a boy"), Region(RIGHT, LONG), unseen))
    assert close(short[-1], beside[-1])
    other = latents_of(each_base, scene_of(Region(LEFT, "a boy"), Region(RIGHT, LONGER)))
    assert not close(short[-1], other[-1])


def test_a_weight_of_one_is_none(each_base: Base) -> None:
    plain, one, two = (
        latents_of(each_base, scene_of(Region(LEFT, prompt), Region(RIGHT, "a girl")))
        for prompt in ("a boy in the rain", "a (boy:1) in the rain", "a (boy:2) in the rain")
    )
    assert torch.equal(plain[-1], one[-1]) and not close(plain[-1], two[-1])


def test_long_negative_prompts_and_batches(tiny: Base) -> None:
    settings = {"steps": 1, "precision": Precision.FP32, "reading": PromptReading(windows=True)}
    together = sample(tiny, ["a dog", LONG], seeds=[1, 2], negative_prompt=LONGER, **settings)
    alone = sample(tiny, [LONG], seeds=[2], negative_prompt=LONGER, **settings)[0]
    difference = [abs(a - b) for a, b in zip(together[1].tobytes(), alone.tobytes())]
    assert max(difference) <= 1
