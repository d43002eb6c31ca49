"""Scenes that begin from a picture, regions made again in it, and second, larger passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mixshow.models import Base
from mixshow.sampling.areas import Feathered, Polygon, Scaled
from mixshow.sampling.compose import compose
from mixshow.sampling.generate import pixels_of, to_pictures
from mixshow.sampling.hires import SecondPass, Upscale, enlarged
from mixshow.sampling.precision import Precision
from mixshow.sampling.redo import StartPicture, redone_area
from mixshow.sampling.regions import Edges, PixelBox, Region, region_shares
from mixshow.sampling.running import running_pictures
from mixshow.sampling.scene import PoseGuide, Scene

SIZE, LARGER = (128, 64), (256, 128)
LEFT, RIGHT = PixelBox(0, 0, 40, 64), PixelBox(64, 0, 128, 64)


def scene_of(**settings: Any) -> Scene:
    regions = Region(LEFT, "a boy"), Region(RIGHT, "a girl")
    defaults = {"regions": regions, "steps": 4, "guidance": 3.0, "precision": Precision.FP32, "edges": Edges.SOFT}
    return Scene("a dog", SIZE, **(defaults | settings))


def photo(size: tuple[int, int] = SIZE) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def steps_of(base: Base, scene: Scene) -> tuple[Image.Image, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    (picture,) = compose(base, scene, seeds=[1], callback=told.append)
    return picture, told


def test_a_strength_of_one_and_less(tiny: Base) -> None:
    _, told = steps_of(tiny, scene_of(start=StartPicture(photo(), 0.5)))
    assert [step["step"] for step in told] == [2, 3] and {step["steps"] for step in told} == {4}
    _, told = steps_of(tiny, scene_of(start=StartPicture(photo(), 0.01)))
    assert [step["step"] for step in told] == [3]
    _, told = steps_of(tiny, scene_of(start=StartPicture(photo(), 1.0)))
    assert [step["step"] for step in told] == [0, 1, 2, 3]


def test_a_region_s_steps_are_those_of_the_whole_way(tiny: Base) -> None:
    """What acts in the first half only, does not act where only the second half is made."""
    start = StartPicture(photo(), 0.5)
    early = scene_of(start=start, regions=(Region(LEFT, "a boy", span=(0.0, 0.5)),))
    late = scene_of(start=start, regions=(Region(LEFT, "a boy", span=(0.5, 1.0)),))
    never = scene_of(start=start, regions=())
    always = scene_of(start=start, regions=(Region(LEFT, "a boy"),))
    latents = [steps_of(tiny, scene)[1][-1]["latents"] for scene in (early, never, late, always)]
    assert torch.allclose(latents[0], latents[1], rtol=1e-4, atol=1e-4)
    assert torch.equal(latents[2], latents[3]) and not torch.allclose(latents[0], latents[2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistep", "EulerAncestralDiscrete", "DDIM"])
def test_the_rest_of_a_picture_keeps_its_pixels(tiny: Base, scheduler: str) -> None:
    picture = photo()
    area = redone_area(scene_of().regions, [0], SIZE, margin=4, feather=8)
    made, told = steps_of(tiny, scene_of(start=StartPicture(picture, 1.0, area), scheduler=scheduler))
    before, after = np.asarray(picture), np.asarray(made)
    assert (before[:, 48:] == after[:, 48:]).all()
    assert (before[:, :40] != after[:, :40]).any(-1).mean() > 0.9
    own = tiny.encode_images(pixels_of([picture]))
    assert torch.allclose(told[-1]["latents"][..., 6:], own[..., 6:]) and len(told) == 4
    assert not torch.allclose(told[-1]["latents"][..., :6], own[..., :6])


def test_the_area_that_is_made_again() -> None:
    regions = Region(LEFT, "a"), Region(PixelBox(20, 0, 60, 64), "b", priority=1)
    sharp = redone_area(regions, [0], SIZE, margin=0, feather=0)
    assert sharp[:, :20].eq(1).all() and sharp[:, 20:].eq(0).all()  # what lies under others does not count
    grown = redone_area(regions, [0], SIZE, margin=4, feather=0)
    assert grown[:, :24].eq(1).all() and grown[:, 24:].eq(0).all()
    soft = redone_area(regions, [0], SIZE, margin=4, feather=8)
    assert soft[:, :20].eq(1).all() and soft[:, 28:].eq(0).all()
    assert (soft[:, 20:28] > 0).all() and (soft[:, 20:28] < 1).all()
    both = redone_area(regions, [0, 1], SIZE, margin=0, feather=0)
    assert both[:, :60].eq(1).all() and both[:, 60:].eq(0).all()
    kept = StartPicture(photo(), 1.0, soft).kept(8, 16)
    assert kept is not None and kept[:, :4].eq(0).all() and kept[:, 4:].eq(1).all()


@pytest.mark.parametrize("upscale", list(Upscale))
def test_a_second_pass(tiny: Base, upscale: Upscale) -> None:
    pose = PoseGuide(photo())
    scene = dataclasses.replace(scene_of(), second=SecondPass(LARGER, 0.5, 6, upscale))
    picture, told = steps_of(tiny, scene)
    assert picture.size == LARGER
    assert [(step["pass"], step["step"]) for step in told] == [(0, i) for i in range(4)] + [(1, i) for i in (3, 4, 5)]
    assert told[-1]["latents"].shape[-2:] == (16, 32) and {step["passes"] for step in told} == {2}
    plain, first = steps_of(tiny, scene_of())
    assert torch.equal(first[-1]["latents"], told[3]["latents"]) and plain.size == SIZE
    assert scene_of(pose=pose).scaled(LARGER).pose.picture.size == LARGER


@torch.no_grad()
def test_what_is_enlarged_looks_the_same(tiny: Base) -> None:
    flat = tiny.encode_images(pixels_of([Image.new("RGB", SIZE, (200, 40, 90))]))
    for upscale in Upscale:
        larger = enlarged(tiny, flat, LARGER, upscale)
        assert larger.shape == (1, 4, 16, 32)
    picture = to_pictures(tiny.decode_latents(flat))[0].resize(LARGER, Image.Resampling.LANCZOS)
    expected = tiny.encode_images(pixels_of([picture]))
    found = enlarged(tiny, flat, LARGER, Upscale.PICTURE)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.005)  # pixels are rounded: one may fall either way


def test_a_picture_of_the_second_pass_s_size_is_made_there_alone(tiny: Base) -> None:
    second = SecondPass(LARGER)
    picture, told = steps_of(tiny, scene_of(second=second, start=StartPicture(photo(LARGER), 0.5)))
    assert picture.size == LARGER and {step["passes"] for step in told} == {1}
    _, told = steps_of(tiny, scene_of(second=second, start=StartPicture(photo(), 0.5)))
    assert {step["passes"] for step in told} == {2}


@pytest.mark.parametrize("upscale", list(Upscale))
def test_a_region_of_a_larger_picture_goes_through_both_passes(tiny: Base, upscale: Upscale) -> None:
    picture = photo(LARGER)
    area = redone_area(scene_of().scaled(LARGER).regions, [0], LARGER, margin=4, feather=8)
    second = SecondPass(LARGER, 0.5, 4, upscale)
    made, told = steps_of(tiny, scene_of(second=second, start=StartPicture(picture, 0.75, area)))
    assert [(step["pass"], step["step"]) for step in told] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    before, after = np.asarray(picture), np.asarray(made)
    assert (before[:, 88:] == after[:, 88:]).all() and (before[:, :80] != after[:, :80]).any(-1).mean() > 0.9
    small = picture.resize(SIZE, Image.Resampling.LANCZOS)
    own = tiny.encode_images(pixels_of([small]))
    assert torch.allclose(told[2]["latents"][..., 6:], own[..., 6:], atol=1e-5)


def test_regions_have_the_same_shares_in_a_larger_picture() -> None:
    shapes = PixelBox(7, 3, 50, 60), Polygon(((60.0, 2.0), (120.0, 30.0), (70.0, 60.0)))
    regions = tuple(Region(Feathered(shape, 6.0), "a") for shape in shapes)
    scene = scene_of(regions=regions)
    scaled = scene.scaled(LARGER)
    assert all(isinstance(region.area, Scaled) and region.area.problem(LARGER) is None for region in scaled.regions)
    for grid in ((8, 16), (16, 32)):
        torch.testing.assert_close(
            region_shares(scaled.regions, *grid, LARGER, Edges.SOFT),
            region_shares(scene.regions, *grid, SIZE, Edges.SOFT),
        )
    assert scene.scaled(SIZE).regions == scene.regions


def test_running_pictures_show_what_they_become(each_base: Base) -> None:
    scene = Scene("a dog", SIZE, steps=3, guidance=1.0, scheduler="DDIM", precision=Precision.FP32)
    told: list[dict[str, Any]] = []
    compose(each_base, scene, seeds=[1, 2], batch_size=2, callback=told.append)
    shown = [running_pictures(each_base, step) for step in told]
    assert [picture.size for pictures in shown for picture in pictures] == [(64, 32)] * 6
    last = torch.nn.functional.interpolate(told[-1]["latents"], scale_factor=0.5, mode="area")
    expected = to_pictures(each_base.decode_latents(last))  # the last step goes (almost) to the prediction itself
    difference = np.abs(np.asarray(expected[0], dtype=int) - np.asarray(shown[-1][0], dtype=int))
    assert difference.mean() < 8
