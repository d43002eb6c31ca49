from __future__ import annotations

import numpy as np
import pytest

from mixshow.core.errors import MixshowError
from mixshow.sampling.joints import INDEX
from mixshow.sampling.named_poses import named_person
from mixshow.sampling.people_boxes import PEOPLE_MARGINS, Margins, boxes_around

SIZE = (1000, 600)
NONE = Margins(0, 0, 0)


def standing(x: float, floor: float = 550, height: float = 400) -> np.ndarray:
    return named_person("standing", (x, floor), height)


def test_boxes_have_room_around_skeletons() -> None:
    person = standing(500)
    low, high = person[:, :2].min(0), person[:, :2].max(0)
    height = high[1] - low[1]
    [box] = boxes_around([person], SIZE, Margins(0.1, 0.2, 0.05))
    expected = [low[0] - 0.1 * height, low[1] - 0.2 * height, high[0] + 0.1 * height, high[1] + 0.05 * height]
    np.testing.assert_allclose(box, expected, atol=1)
    [box] = boxes_around([standing(980, 620)], SIZE, PEOPLE_MARGINS)
    assert box[2] == SIZE[0] and box[3] == SIZE[1]


def test_neighbours_end_half_way_in_any_order() -> None:
    people = [standing(600), standing(300), standing(450)]
    boxes = boxes_around(people, SIZE, PEOPLE_MARGINS)
    assert boxes[1][2] in (375, 376) and boxes[2][0] == 375
    assert boxes[2][2] == 525 and boxes[0][0] == 525


def test_people_above_each_other_do_not_cut_each_other() -> None:
    people = [standing(480, 250, 200), standing(520, 580, 200)]
    alone = [boxes_around([person], SIZE, PEOPLE_MARGINS)[0] for person in people]
    assert boxes_around(people, SIZE, PEOPLE_MARGINS) == alone


def test_people_before_each_other_overlap() -> None:
    people = [standing(500), standing(505, 560, 250)]
    alone = [boxes_around([person], SIZE, PEOPLE_MARGINS)[0] for person in people]
    assert boxes_around(people, SIZE, PEOPLE_MARGINS) == alone


def test_half_seen_people_go_on_below() -> None:
    person = standing(500)
    whole = boxes_around([person], SIZE, NONE)[0]
    for name in ("right_knee", "left_knee", "right_ankle", "left_ankle"):
        person[INDEX[name], 2] = 0
    half = boxes_around([person], SIZE, NONE)[0]
    assert abs(half[3] - whole[3]) < 0.03 * 400


def test_people_without_a_box_are_named() -> None:
    bare = np.zeros((18, 3))
    bare[0] = (5, 5, 1)
    with pytest.raises(MixshowError, match=r"person 2: expected at least two visible key points .* found 1"):
        boxes_around([standing(500), bare], SIZE)
    with pytest.raises(MixshowError, match="person 1: stands outside of the picture of 1000x600"):
        boxes_around([standing(5000)], SIZE)
