"""Points of pictures on which layers are solved in sequence: which, and how many."""

from __future__ import annotations

import itertools

from mixshow.fusion.collect import default_points
from mixshow.fusion.own_and_fused import chosen_points, chosen_steps
from mixshow.models import Base


def test_pictures_take_turns_in_their_steps() -> None:
    assert [chosen_steps(number, 8, 2) for number in range(5)] == [[0, 4], [1, 5], [2, 6], [3, 7], [0, 4]]
    assert chosen_steps(3, 4, 9) == [0, 1, 2, 3] and chosen_steps(5, 8, 1) == [5]
    for number, points in itertools.product(range(3), range(1, 40)):
        chosen = chosen_points(number, 5, 6, points)
        assert sum(map(len, chosen.values())) == min(points, 30) and len(chosen) == min(points, 5)


def test_large_pictures_have_fewer_points(tiny: Base) -> None:
    side = 33 * tiny.topology.latent_factor
    side += -side % tiny.topology.size_multiple
    assert default_points(tiny, None, None) == 96 and default_points(tiny, side, side) == 32
