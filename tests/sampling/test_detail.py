"""Regions made once more, each alone: against the same made by hand, what stays, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mixshow.config.load import load
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import OptionsError
from mixshow.core.seeding import derived_seed
from mixshow.models import Base
from mixshow.recipes.scene import read_scene
from mixshow.sampling.areas import Mask
from mixshow.sampling.compose import _windows, compose
from mixshow.sampling.detail import DetailPass
from mixshow.sampling.directed import DirectedNetwork
from mixshow.sampling.hires import SecondPass
from mixshow.sampling.precision import Precision
from mixshow.sampling.redo import StartPicture, redone_area
from mixshow.sampling.regions import Edges, PixelBox, Region
from mixshow.sampling.scene import ConditionPicture, PoseGuide, Scene
from mixshow.sampling.windows import windows

SIZE = (128, 64)
LEFT, RIGHT = PixelBox(0, 16, 32, 48), PixelBox(64, 16, 96, 48)
BOY, GIRL = Region(LEFT, "a boy", "a hat"), Region(RIGHT, "a girl", guidance=2.0, seed_offset=3)
EXACT = DetailPass(0.5, margin=0.0, padding=0.25)


def scene_of(detail: DetailPass | None, **settings: Any) -> Scene:
    defaults = {"regions": (BOY, GIRL), "steps": 4, "guidance": 3.0, "edges": Edges.SOFT, "precision": Precision.FP32}
    return Scene("a dog", SIZE, detail=detail, **(defaults | settings))


def noise(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def close(first: Image.Image, second: Image.Image) -> bool:
    """Up to rounding of a value."""
    return bool((np.abs(np.asarray(first).astype(int) - np.asarray(second)) <= 1).all())


def test_each_region_is_what_its_prompt_alone_makes_of_its_place(tiny: Base) -> None:
    """By hand, without regions: cut, enlarge to the native 64 pixels, make only its place again, shrink, paste."""
    (plain,) = compose(tiny, scene_of(None), seeds=[1])
    (made,) = compose(tiny, scene_of(EXACT), seeds=[1])
    by_hand = plain.copy()
    for place, box, prompt, negative, guidance, seed in (
        ((0, 16, 32, 48), (0, 8, 48, 56), "a boy", "a hat", 3.0, derived_seed(1, "detail", 0)),
        ((64, 16, 96, 48), (56, 8, 104, 56), "a girl", "", 2.0, derived_seed(1 + 3, "detail", 1)),
    ):
        within = tuple(a - b for a, b in zip(place, box[:2] * 2))
        inside = torch.zeros(48, 48)
        inside[within[1] : within[3], within[0] : within[2]] = 1
        nearest = torch.arange(64) * 48 // 64
        tile = plain.crop(box).resize((64, 64), Image.Resampling.LANCZOS)
        alone = Scene(
            prompt, (64, 64), negative, steps=4, guidance=guidance, precision=Precision.FP32,
            start=StartPicture(tile, 0.5, inside[nearest][:, nearest]),
        )  # fmt: skip
        again = compose(tiny, alone, seeds=[seed])[0].resize((48, 48), Image.Resampling.LANCZOS)
        by_hand.paste(again.crop(within), place[:2])
    assert close(made, by_hand) and not close(made, plain)


def test_only_what_belongs_to_regions_changes(tiny: Base) -> None:
    (plain,) = compose(tiny, scene_of(None), seeds=[1])
    (made,) = compose(tiny, scene_of(DetailPass(0.5, margin=0.25, regions=(1,))), seeds=[1])
    changed = (np.asarray(plain) != np.asarray(made)).any(-1)
    assert not changed[:, :52].any() and not changed[:, 108:].any()  # margin of 8 pixels, border of 8 around its end
    assert changed[16:48, 64:96].mean() > 0.9 and changed[16:48, 57:63].any()


def test_a_neighbour_is_not_changed() -> None:
    regions = Region(PixelBox(0, 0, 64, 64), "a"), Region(PixelBox(64, 0, 128, 64), "b")
    first, second = windows(scene_of(None, regions=regions), EXACT, native=64, multiple=8)
    assert first.share[:, :64].eq(1).all() and first.share[:, 64:].eq(0).all()
    assert torch.equal(second.share, 1 - first.share)
    grown = next(windows(scene_of(None, regions=regions), DetailPass(margin=0.1), native=64, multiple=8)).share
    assert grown[:, 70:].eq(0).all()  # half of the soft border, of 6 pixels


def test_of_a_picture_only_what_is_made_again(tiny: Base) -> None:
    told: list[dict[str, Any]] = []
    start = StartPicture(noise(), 1.0, redone_area((BOY, GIRL), [1], SIZE, margin=2, feather=2))
    (made,) = compose(tiny, scene_of(EXACT, start=start), seeds=[1], callback=told.append)
    assert {step["passes"] for step in told} == {2}
    changed = (np.asarray(noise()) != np.asarray(made)).any(-1)
    assert not changed[:, :60].any() and changed[16:48, 64:96].mean() > 0.9


def test_neighbours_of_what_is_made_again_stay(tiny: Base) -> None:
    """What is made again reaches into a neighbour that touches: of that one only this strip is made once more."""
    regions = Region(PixelBox(0, 0, 64, 64), "a"), Region(PixelBox(64, 0, 128, 64), "b")
    redone = redone_area(regions, [1], SIZE, margin=8, feather=0)
    start = StartPicture(noise(), 0.5, redone)
    scene = scene_of(DetailPass(0.5, margin=0.0), regions=regions, start=start)
    strip, own = _windows(tiny, scene, [])
    assert strip.share[:, 56:64].eq(1).all() and strip.share.sum() == 8 * 64
    alone = strip.of(noise()).start
    assert alone is not None and alone.redone is not None and 0 < alone.redone.mean() < 0.2
    assert own.share[:, 64:].eq(1).all() and own.share[:, :64].eq(0).all()


def test_windows_hold_the_soft_border() -> None:
    region = Region(PixelBox(40, 16, 72, 48), "a")
    detail = DetailPass(margin=0.25, padding=0.0)
    (window,) = windows(scene_of(None, regions=(region,)), detail, native=64, multiple=8)
    left, top, right, bottom = window.box
    outside = window.share.clone()
    outside[top:bottom, left:right] = 0
    assert not outside.any() and window.share[:, left].max() < 0.2


def test_progress_of_all_windows_is_told(tiny: Base) -> None:
    told: list[dict[str, Any]] = []
    compose(tiny, scene_of(EXACT), seeds=[1, 2], batch_size=2, callback=told.append)
    assert {step["passes"] for step in told} == {5}
    assert [step["pass"] for step in told] == [0] * 4 + [1, 1, 2, 2, 3, 3, 4, 4]


def test_windows_lie_in_the_picture_and_fit_the_model() -> None:
    corner = Region(PixelBox(100, 0, 128, 20), "a")
    (window,) = windows(scene_of(None, regions=(corner,)), DetailPass(padding=0.5), native=64, multiple=8)
    assert window.box == (69, 0, 128, 59) and window.scene.size == (64, 64)
    (whole,) = windows(
        scene_of(None, regions=(Region(PixelBox(0, 0, 128, 64), "a"),)), EXACT, native=64, multiple=8
    )  # larger than the native size: as it is
    assert whole.box == (0, 0, 128, 64) and whole.scene.size == (128, 64)
    hidden = Region(LEFT, "a"), Region(LEFT, "b", priority=1)
    assert len(list(windows(scene_of(None, regions=hidden), EXACT, native=64, multiple=8))) == 1


def test_poses_and_conditions_are_cut_with_the_window() -> None:
    ramp = torch.arange(128, dtype=torch.float64).expand(64, 128) / 127
    scene = scene_of(
        None,
        regions=(Region(PixelBox(0, 0, 64, 64), "a"), Region(PixelBox(64, 0, 128, 64), "b")),
        pose=PoseGuide(Image.new("RGB", SIZE, "white"), 0.5, (0.0, 0.3)),
        conditions=(ConditionPicture(noise(), mask=Mask(ramp)),),
    )
    window = next(windows(scene, DetailPass(margin=0.0, padding=0.25), native=64, multiple=8))
    assert window.box == (0, 0, 96, 64) and window.scene.size == (96, 64)
    pose, (condition,) = window.scene.pose, window.scene.conditions
    assert pose is not None and pose.span == (0.0, 0.3) and pose.weight == 0.5
    shown = np.asarray(pose.picture)
    assert (shown[:, :64] == 255).all() and (shown[:, 64:] == 0).all()  # the neighbour's skeleton is hidden
    assert close(condition.picture, noise().crop(window.box))
    assert condition.mask is not None and torch.equal(condition.mask.values, ramp[:, :96])
    weaker = next(windows(scene, DetailPass(margin=0.0, condition_weight=0.4), native=64, multiple=8)).scene
    assert weaker.pose is not None and (weaker.pose.weight, weaker.conditions[0].weight) == (0.2, 0.4)


def test_networks_act_in_their_regions_windows_only() -> None:
    network: Any = object()
    first, second = windows(
        scene_of(None), EXACT, native=64, multiple=8, networks=[DirectedNetwork(network, frozenset({1}))]
    )
    assert first.networks == [] and [each.regions for each in second.networks] == [frozenset({0})]


def test_behind_a_second_pass(tiny: Base) -> None:
    (picture,) = compose(tiny, scene_of(EXACT, second=SecondPass((256, 128))), seeds=[1])
    (larger,) = compose(tiny, scene_of(None, second=SecondPass((256, 128))), seeds=[1])
    changed = (np.asarray(picture) != np.asarray(larger)).any(-1)
    assert picture.size == (256, 128)
    assert changed[32:96, :64].mean() > 0.9 and not changed[:, 64:128].any() and changed[32:96, 128:192].mean() > 0.9


def problems_of(detail: dict[str, Any], **values: Any) -> list[str]:
    regions = [{"prompt": "a <pip1>", "box": [0, 0, 32, 64]}, {"prompt": "a <luma1>", "box": [64, 0, 96, 64]}]
    given = {"prompt": "a", "output": "x.png", "size": [128, 64], "regions": regions, "detail": detail}
    problems: list[str] = []
    read_scene(load(SceneOptions, Path("scene"), values={**given, **values}), problems)
    return problems


def test_options_and_what_is_refused(tmp_path: Path) -> None:
    assert problems_of({"regions": ["pip"]}) == []
    assert problems_of({"regions": [4]}) == ["detail.regions: expected a region from 0 to 1, found 4"]
    with pytest.raises(OptionsError, match="expected areas beside 'detail', found from: attention"):
        problems_of({"regions": [0]}, regions=[{"prompt": "a <pip1>", "from": "attention"}])
    for guidance, expected in ((0, "1 or more"), (float("nan"), "a number")):
        with pytest.raises(OptionsError, match=rf"detail\.guidance: expected {expected}"):
            problems_of({"guidance": guidance})
    assert "found none" in problems_of({}, regions=[])[0]
    with pytest.raises(OptionsError, match=r"detail\.strength: expected above 0, up to 1, found 2"):
        problems_of({"strength": 2})
    with pytest.raises(OptionsError, match=r"detail\.condition_weight: expected 0 to 1, found 1\.5"):
        problems_of({"condition_weight": 1.5})
    weaker = "detail.condition_weight: expected a pose or conditions in the scene that it could weaken, found none"
    assert problems_of({"condition_weight": 0.5}) == [weaker]
    posed = {"pose": {"people": [{"person": "waving", "at": [0.2, 0.9], "height": 0.8}]}}
    assert problems_of({"condition_weight": 0.5}, **posed) == []
    photo = tmp_path / "people.png"
    noise().save(photo)
    assert problems_of({"condition_weight": 0.5}, pose={"photo": str(photo)}) == []  # nobody was looked for yet
