from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixshow.sampling.areas import Feathered, Mask, Polygon
from mixshow.sampling.averaging import averaged
from mixshow.sampling.regions import Area, Edges, PixelBox, Region, region_shares

SIZE = (96, 64)
GRIDS = [(64, 96), (8, 12), (4, 6), (2, 3), (1, 1), (5, 7)]
BOX = PixelBox(13, 7, 50, 64)
TRIANGLE = Polygon(((10.0, 60.0), (90.0, 50.0), (40.0, 3.0)))


def as_mask(box: PixelBox) -> Mask:
    return Mask(box.coverage(SIZE[1], SIZE[0], SIZE, Edges.SOFT))


def brute_polygon(polygon: Polygon, samples: int) -> Tensor:
    """Coverage of the pixels by counting points, `samples` along each side of a pixel."""
    y = (torch.arange(SIZE[1] * samples, dtype=torch.float64)[:, None] + 0.5) / samples
    x = (torch.arange(SIZE[0] * samples, dtype=torch.float64) + 0.5) / samples
    inside = torch.zeros(len(y), len(x), dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(polygon.points, polygon.points[1:] + polygon.points[:1]):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return averaged(inside.double(), SIZE[1], SIZE[0])


@pytest.mark.parametrize("grid", GRIDS)
def test_means_over_positions_are_exact(grid: tuple[int, int]) -> None:
    values = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, columns = grid
    repeated = values.repeat_interleave(rows, 1).repeat_interleave(columns, 2)
    expected = repeated.unflatten(2, (columns, 6)).unflatten(1, (rows, 4)).mean((2, 4))
    torch.testing.assert_close(averaged(values, rows, columns), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("edges", Edges)
@pytest.mark.parametrize("grid", GRIDS)
def test_masks_and_polygons_of_a_box_equal_the_box(grid: tuple[int, int], edges: Edges) -> None:
    corners = Polygon(((13.0, 7.0), (50.0, 7.0), (50.0, 64.0), (13.0, 64.0)))
    expected = BOX.coverage(*grid, SIZE, edges)
    for area in (as_mask(BOX), corners):
        torch.testing.assert_close(area.coverage(*grid, SIZE, edges), expected, rtol=0, atol=1e-12)


def test_a_polygon_covers_what_lies_inside() -> None:
    cross = Polygon(((0.0, 0.0), (96.0, 64.0), (96.0, 0.0), (0.0, 64.0)))  # its sides cross
    for polygon in (TRIANGLE, cross):
        found = polygon.coverage(SIZE[1], SIZE[0], SIZE, Edges.SOFT)
        difference = found - brute_polygon(polygon, 16)
        assert difference.abs().max() < 0.08  # of a pixel; a scan line stands for a quarter of one
        assert difference.mean().abs() < 1e-4
    corners = torch.tensor(TRIANGLE.points, dtype=torch.float64)
    (ax, ay), (bx, by) = (corners[1:] - corners[0]).tolist()
    area = float(TRIANGLE.coverage(1, 1, SIZE, Edges.SOFT)) * SIZE[0] * SIZE[1]
    assert area == pytest.approx(abs(ax * by - ay * bx) / 2, rel=1e-3)


def test_a_mask_of_another_size_is_stretched() -> None:
    quarter = Mask(torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
    expected = PixelBox(0, 0, 48, 32).coverage(8, 12, SIZE, Edges.SOFT)
    torch.testing.assert_close(quarter.coverage(8, 12, SIZE, Edges.SOFT), expected, rtol=0, atol=1e-12)
    assert Mask(torch.zeros(2, 2, dtype=torch.float64)).problem(SIZE)


@pytest.mark.parametrize("width", [1.5, 4.0, 7.3, 40.0])
def test_a_feather_is_a_straight_ramp_around_the_border(width: float) -> None:
    left, right = (Feathered(box, width) for box in (PixelBox(0, 0, 48, 64), PixelBox(48, 0, 96, 64)))
    covered = left.coverage(SIZE[1], SIZE[0], SIZE, Edges.SOFT)
    # A pixel's value is the share of the window around its centre that lies left of the border.
    centre = torch.arange(96, dtype=torch.float64) + 0.5
    expected = ((48 - (centre - width / 2)) / width).clamp(0, 1)
    torch.testing.assert_close(covered[20], expected, rtol=0, atol=1e-12)
    together = covered + right.coverage(SIZE[1], SIZE[0], SIZE, Edges.SOFT)
    torch.testing.assert_close(together, torch.ones_like(together), rtol=0, atol=1e-12)


@pytest.mark.parametrize("area", [PixelBox(40, 20, 44, 24), as_mask(PixelBox(40, 20, 41, 21)), Feathered(BOX, 9)])
def test_nothing_vanishes_in_the_coarsest_layer(area: Area) -> None:
    shares = region_shares([Region(area, "a"), Region(TRIANGLE, "b")], 2, 3, SIZE, Edges.SOFT)
    assert (shares.flatten(1).amax(1) > 0).all()


@pytest.mark.parametrize("priority", [0, 1])
def test_rounding_errors_are_no_shares(priority: float) -> None:
    """Feathers that sum to one leave nothing to the background, not even 1e-16 of it."""
    areas = [Feathered(PixelBox(*box), 7.3) for box in ((0, 0, 47, 64), (47, 0, 96, 64))]
    halves = [Region(areas[0], "a", priority=priority), Region(areas[1], "b")]
    shares = region_shares(halves, 8, 12, SIZE, Edges.SOFT)
    assert (shares[0] == 0).all()
    assert (shares[1, :, -3:] == 0).all()
