"""Areas from attention maps."""

from __future__ import annotations

import torch

from mixshow.sampling.attention_areas import areas_of_maps, pieces


def test_maps_that_meet_are_divided_where_the_other_is_larger() -> None:
    maps = torch.zeros(2, 12, 16)
    maps[0, 2:10, 1:7] = 1.0
    maps[0, 0, 15] = 0.6  # a speck
    maps[1, 2:10, 6:11] = 0.5  # scaled to its own largest value; shares a column
    first, second = areas_of_maps(maps, [0.5, 0.5])
    assert first[3:9, 2:5].all() and not first[:, 8:].any()
    assert second[3:9, 8:10].all() and not second[:, :5].any()
    assert not (first & second).any()


def test_every_concept_gets_a_figure_of_its_own_where_all_attend_to_all() -> None:
    """Three figures, every map high at all of them; each a little higher at its own, the third the same everywhere."""
    places = (slice(1, 5), slice(8, 12), slice(15, 19))
    maps = torch.zeros(3, 12, 20)
    for number, strengths in enumerate(((0.9, 1.0, 0.8), (0.9, 0.9, 1.0), (1.0, 1.0, 1.0))):
        for place, strength in zip(places, strengths):
            maps[number, 2:10, place] = strength
    areas = areas_of_maps(maps, [0.4] * 3)
    for area, place in zip(areas, (places[1], places[2], places[0])):
        assert area[3:9, place].all()
        assert area.sum() <= 10 * 6
    order = [2, 0, 1]
    for area, number in zip(areas_of_maps(maps[order], [0.4] * 3), order):
        assert torch.equal(area, areas[number])


def test_a_map_of_nothing_has_no_area() -> None:
    maps = torch.zeros(2, 8, 8)
    maps[0, 2:6, 2:6] = 1
    first, second = areas_of_maps(maps, [0.4, 0.4])
    assert first.any() and not second.any()


def test_pieces_hang_together_at_corners_too() -> None:
    drawn = ["##..#", "#...#", "..#.#", "....#"]
    inside = torch.tensor([[cell == "#" for cell in row] for row in drawn])
    found = pieces(inside)
    assert [int(piece.sum()) for piece in found] == [4, 3, 1]
    assert torch.equal(torch.stack(found).any(0), inside)
    assert found[0][:, 4].all()
    assert pieces(torch.zeros(3, 3, dtype=torch.bool)) == []
    assert [int(piece.sum()) for piece in pieces(torch.eye(9, dtype=torch.bool))] == [9]
