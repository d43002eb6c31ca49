from __future__ import annotations

import math

import pytest
import torch

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


def test_soft_edges_keep_small_boxes_in_coarse_layers() -> None:
    box = PixelBox(85, 0, 171, 128)  # no position of 64 pixels lies wholly inside
    assert box.coverage(2, 4, SIZE, Edges.HARD).sum() == 0
    area = box.coverage(2, 4, SIZE, Edges.SOFT).sum() / 8
    assert float(area) == pytest.approx(86 / 256)


def test_base_ratio_gives_a_part_back_to_the_scene() -> None:
    region = Region(PixelBox(0, 0, 128, 128), "own", base_ratio=0.25)
    plan = RegionPlan([region], "scene", "", size=SIZE)
    weights = plan.weights(8, 16)
    assert plan.texts == [("scene", ""), ("own", "")]
    assert weights[:, 0, 0].tolist() == [0.25, 0.75]
    assert weights[:, 0, 8].tolist() == [1, 0]


def test_boxes_in_fractions_pixels_and_the_published_order() -> None:
    assert PixelBox.from_numbers([0.0, 0.05, 0.33, 1.0], SIZE) == PixelBox(0, 6, 84, 128)
    assert PixelBox.from_numbers([10, 20, 30, 40], SIZE) == PixelBox(10, 20, 30, 40)
    assert PixelBox.from_published([10, 20, 120, 110]) == PixelBox(left=20, top=10, right=110, bottom=120)


@pytest.mark.parametrize("numbers", [(5, 5, 5, 9), (9, 0, 3, 9), (0, 0, 257, 9), (-1, 0, 3, 9)])
def test_bad_boxes_are_explained(numbers: tuple[int, int, int, int]) -> None:
    assert PixelBox(*numbers).problem(SIZE)
