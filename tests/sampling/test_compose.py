"""Whole pictures of scenes: what acts at which steps and where."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mixshow.models import Base
from mixshow.sampling.compose import compose
from mixshow.sampling.generate import start_noise
from mixshow.sampling.precision import Precision
from mixshow.sampling.regions import Edges, PixelBox, Region
from mixshow.sampling.scene import Scene

SIZE = (128, 64)
WHOLE, LEFT, RIGHT = PixelBox(0, 0, *SIZE), PixelBox(0, 0, 64, 64), PixelBox(64, 0, 128, 64)


def scene_of(*regions: Region, **settings: Any) -> Scene:
    defaults = {"negative_prompt": "red", "steps": 2, "guidance": 3.0, "precision": Precision.FP32}
    return Scene("a dog", SIZE, regions=regions, **(defaults | settings))


def latents_of(base: Base, scene: Scene, seed: int = 0) -> list[Tensor]:
    """Latents after every step."""
    found: list[Tensor] = []
    compose(base, scene, seeds=[seed], callback=lambda step: found.append(step["latents"].clone()))
    return found


def close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "sd2"])  # XL's pooled state stays the scene's
def test_one_region_over_everything_is_its_prompt_alone(name: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(name)
    scene = scene_of(Region(WHOLE, "a boy", "blue"))
    alone = dataclasses.replace(scene_of(), prompt="a boy", negative_prompt="blue")
    assert close(latents_of(base, scene)[-1], latents_of(base, alone)[-1])


def test_a_base_ratio_of_one_is_no_region(each_base: Base) -> None:
    scene = scene_of(Region(LEFT, "a boy", "blue", base_ratio=1.0))
    assert close(latents_of(each_base, scene)[-1], latents_of(each_base, scene_of())[-1])


def test_regions_in_any_order_make_the_same_picture(each_base: Base) -> None:
    regions = Region(LEFT, "a boy"), Region(PixelBox(30, 0, 100, 64), "a girl", guidance=5.0), Region(RIGHT, "a toy")
    found = [latents_of(each_base, scene_of(*order, edges=Edges.SOFT))[-1] for order in (regions, regions[::-1])]
    assert close(*found)


def test_a_region_acts_in_its_steps_only(tiny: Base) -> None:
    region = Region(LEFT, "a boy")
    without, always = latents_of(tiny, scene_of()), latents_of(tiny, scene_of(region))
    late = latents_of(tiny, scene_of(dataclasses.replace(region, span=(0.5, 1.0))))
    early = latents_of(tiny, scene_of(dataclasses.replace(region, span=(0.0, 0.5))))
    assert close(late[0], without[0]) and not close(late[1], without[1])
    assert torch.equal(early[0], always[0]) and not close(early[1], always[1])
    scheduled = latents_of(tiny, scene_of(region, schedule=((0.0, 1.0), (0.5, 0.0))))
    assert torch.equal(scheduled[1], early[1])


def test_a_second_batch_begins_at_the_first_step(tiny: Base) -> None:
    scene = scene_of(Region(LEFT, "a boy", span=(0.0, 0.5)))
    both = compose(tiny, scene, seeds=[1, 2])
    assert both[1].tobytes() == compose(tiny, scene, seeds=[2])[0].tobytes()


def test_background_and_base_have_prompts_of_their_own(tiny: Base) -> None:
    mixed = scene_of(Region(WHOLE, "a boy", base_ratio=1.0), base_prompt="a girl", background_prompt="a toy")
    alone = dataclasses.replace(scene_of(), prompt="a girl")
    assert close(latents_of(tiny, mixed)[-1], latents_of(tiny, alone)[-1])
    nothing_covered = scene_of(Region(PixelBox(0, 0, 1, 1), "a boy"), base_prompt="a girl", background_prompt="a toy")
    alone = dataclasses.replace(scene_of(), prompt="a toy")
    assert close(latents_of(tiny, nothing_covered)[-1], latents_of(tiny, alone)[-1])


def test_guidance_of_a_region_acts_in_its_area(tiny: Base) -> None:
    plain = latents_of(tiny, scene_of(Region(LEFT, "a boy")))
    more = latents_of(tiny, scene_of(Region(LEFT, "a boy", guidance=6.0)))
    assert torch.equal(more[0][..., 8:], plain[0][..., 8:])  # of the first step; later ones see the whole picture
    assert not close(more[0][..., :8], plain[0][..., :8])
    everywhere = latents_of(tiny, scene_of(Region(WHOLE, "a boy", "red", guidance=6.0), guidance=1.0))
    assert close(everywhere[-1], latents_of(tiny, scene_of(Region(WHOLE, "a boy", "red"), guidance=6.0))[-1])


def test_a_seed_offset_changes_the_noise_of_its_area(tiny: Base) -> None:
    started: list[Tensor] = []
    hook = tiny.unet.register_forward_pre_hook(lambda _, inputs: started.append(inputs[0][:1].clone()))
    try:
        found = latents_of(tiny, scene_of(Region(LEFT, "a boy", seed_offset=3), Region(RIGHT, "a toy")), seed=4)
    finally:
        hook.remove()
    own, other = start_noise(tiny, [4], 8, 16), start_noise(tiny, [7], 8, 16)
    assert torch.equal(started[0], torch.cat([other[..., :8], own[..., 8:]], dim=-1))
    whole = latents_of(tiny, scene_of(Region(WHOLE, "a boy", seed_offset=3)), seed=4)
    assert torch.equal(whole[-1], latents_of(tiny, scene_of(Region(WHOLE, "a boy")), seed=7)[-1])
    assert not close(whole[-1], found[-1])
