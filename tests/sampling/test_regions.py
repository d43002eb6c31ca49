from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mixshow.sampling.areas import Feathered
from mixshow.sampling.regional_attention import RegionPlan
from mixshow.sampling.regions import Edges, PixelBox, Region, region_shares

SIZE = (256, 128)
BOXES = [PixelBox(0, 6, 85, 128), PixelBox(70, 0, 171, 120), PixelBox(150, 13, 256, 128)]
GRIDS = [(16, 32), (8, 16), (4, 8), (2, 4)]


@pytest.mark.parametrize("edges", Edges)
@pytest.mark.parametrize("grid", GRIDS)
def test_shares_sum_to_one(grid: tuple[int, int], edges: Edges) -> None:
    shares = region_shares([Region(box, "a") for box in BOXES], *grid, SIZE, edges)
    assert shares.shape == (4, *grid)
    assert shares.min() >= 0
    torch.testing.assert_close(shares.sum(0), torch.ones(grid, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_hard_boxes_follow_the_published_rounding(grid: tuple[int, int]) -> None:
    for box in BOXES:
        rows = range(math.ceil(box.top / 128 * grid[0]), math.floor(box.bottom / 128 * grid[0]))
        columns = range(math.ceil(box.left / 256 * grid[1]), math.floor(box.right / 256 * grid[1]))
        expected = torch.zeros(grid, dtype=torch.float64)
        for row in rows:
            for column in columns:
                expected[row, column] = 1
        assert torch.equal(box.coverage(*grid, SIZE, Edges.HARD), expected)


def test_overlapping_hard_boxes_share_by_their_count() -> None:
    box = PixelBox(0, 0, 128, 128)
    shares = region_shares([Region(box, "a"), Region(box, "b"), Region(PixelBox(0, 0, 64, 128), "c")], 8, 16, SIZE)
    torch.testing.assert_close(shares[:, 0, 0], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3], dtype=torch.float64))
    assert shares[:, 0, 6].tolist() == [0, 0.5, 0.5, 0]
    assert shares[:, 0, 15].tolist() == [1, 0, 0, 0]


def test_the_higher_priority_has_the_place() -> None:
    left, right = PixelBox(0, 0, 150, 128), PixelBox(100, 0, 256, 128)
    for edges, grid in ((Edges.SOFT, (128, 256)), (Edges.HARD, (64, 128))):
        shares = region_shares([Region(left, "a"), Region(right, "b", priority=1)], *grid, SIZE, edges)
        border = 100 * grid[1] // SIZE[0]
        assert (shares[1, :, :border] == 1).all() and (shares[1, :, border:] == 0).all()
        assert (shares[2, :, border:] == 1).all()
    coarse = region_shares([Region(left, "a"), Region(right, "b", priority=1)], 1, 1, SIZE, Edges.SOFT)
    torch.testing.assert_close(coarse[1:].flatten(), torch.tensor([100, 156], dtype=torch.float64) / 256)


def test_weights_divide_what_regions_share() -> None:
    left, right = PixelBox(0, 0, 150, 128), PixelBox(100, 0, 256, 128)
    shares = region_shares([Region(left, "a", weight=3), Region(right, "b")], 128, 256, SIZE, Edges.SOFT)
    assert shares[:, 0, 120].tolist() == [0, 0.75, 0.25]
    assert shares[:, 0, 99].tolist() == [0, 1, 0]
    assert shares[:, 0, 150].tolist() == [0, 0, 1]


@pytest.mark.parametrize("edges", Edges)
def test_the_order_of_regions_does_not_matter(edges: Edges) -> None:
    regions = [Region(box, str(i), weight=1 + i, priority=i // 2) for i, box in enumerate(BOXES)]
    shares = region_shares(regions, 8, 16, SIZE, edges)
    backwards = region_shares(regions[::-1], 8, 16, SIZE, edges)
    torch.testing.assert_close(backwards, shares[[0, 3, 2, 1]], rtol=0, atol=1e-15)


def test_soft_edges_keep_small_boxes_in_coarse_layers() -> None:
    box = PixelBox(85, 0, 171, 128)  # no position of 64 pixels lies wholly inside
    assert box.coverage(2, 4, SIZE, Edges.HARD).sum() == 0
    area = box.coverage(2, 4, SIZE, Edges.SOFT).sum() / 8
    assert float(area) == pytest.approx(86 / 256)


def test_a_plan_s_shares_are_the_means_of_pixels_at_every_resolution() -> None:
    regions = [Region(Feathered(box, 9.5), "a", priority=i) for i, box in enumerate(BOXES)]
    plan = RegionPlan(regions, "scene", "", size=SIZE, edges=Edges.SOFT)
    for grid in [(8, 16), *GRIDS, (5, 9), (128, 256)]:
        expected = region_shares(regions, *grid, SIZE, Edges.SOFT)
        torch.testing.assert_close(plan.shares(*grid), expected, rtol=0, atol=1e-12)
        assert plan.shares(*grid) is plan.shares(*grid)


def test_base_ratio_gives_a_part_back_to_the_scene() -> None:
    region = Region(PixelBox(0, 0, 128, 128), "own", base_ratio=0.25)
    plan = RegionPlan([region], "scene", "", size=SIZE)
    weights = plan.weights(8, 16)
    assert plan.texts == [("scene", ""), ("own", "")]
    assert weights[:, 0, 0].tolist() == [0.25, 0.75]
    assert weights[:, 0, 8].tolist() == [1, 0]


def test_base_and_background_have_prompts_of_their_own() -> None:
    regions = [Region(PixelBox(0, 0, 128, 128), "own", "red", base_ratio=0.25)]
    plan = RegionPlan(regions, "behind", "no", size=SIZE, base_prompt="whole")
    assert plan.texts == [("behind", "no"), ("whole", "no"), ("own", "red")]
    assert plan.base_text == 1
    assert plan.weights(8, 16)[:, 0, 0].tolist() == [0, 0.25, 0.75]
    assert plan.weights(8, 16)[:, 0, 8].tolist() == [1, 0, 0]


def test_regions_act_in_their_part_of_the_steps() -> None:
    first = Region(PixelBox(0, 0, 128, 128), "first", base_ratio=0.2, span=(0.0, 0.5))
    second = Region(PixelBox(128, 0, 256, 128), "second", span=(0.25, 1.0))
    plan = RegionPlan([first, second], "scene", "", size=SIZE, schedule=[(0.75, 0.5), (0.5, 0.9)])
    own = []
    for step in range(8):
        plan.begin_step(step, 8)
        weights = plan.weights(8, 16)
        torch.testing.assert_close(weights.sum(0), torch.ones(8, 16, dtype=torch.float64))
        own.append([weights[1, 0, 0].item(), weights[2, 0, 15].item()])
    np.testing.assert_allclose(np.array(own).T, [[0.8] * 4 + [0] * 4, [0, 0, 1, 1, 0.9, 0.9, 0.5, 0.5]], atol=1e-12)


def test_boxes_in_fractions_pixels_and_the_published_order() -> None:
    assert PixelBox.from_numbers([0.0, 0.05, 0.33, 1.0], SIZE) == PixelBox(0, 6, 84, 128)
    assert PixelBox.from_numbers([10, 20, 30, 40], SIZE) == PixelBox(10, 20, 30, 40)
    assert PixelBox.from_published([10, 20, 120, 110]) == PixelBox(left=20, top=10, right=110, bottom=120)


@pytest.mark.parametrize("numbers", [(5, 5, 5, 9), (9, 0, 3, 9), (0, 0, 257, 9), (-1, 0, 3, 9)])
def test_bad_boxes_are_explained(numbers: tuple[int, int, int, int]) -> None:
    assert PixelBox(*numbers).problem(SIZE)
