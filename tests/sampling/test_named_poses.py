from __future__ import annotations

import numpy as np
import pytest

from mixshow.core.errors import MixshowError
from mixshow.sampling.joints import INDEX
from mixshow.sampling.named_poses import POSES, named_person
from mixshow.sampling.skeleton import ADULT, BODIES

ANKLES = [INDEX["right_ankle"], INDEX["left_ankle"]]


@pytest.mark.parametrize("body", sorted(BODIES))
@pytest.mark.parametrize("name", sorted(POSES))
def test_people_stand_where_they_are_put(name: str, body: str) -> None:
    person = named_person(name, (300, 400), 200, body=BODIES[body])
    assert person.shape == (18, 3) and (person[:, 2] == 1).all()
    floor = 400 - POSES[name].lift * 200
    soles = 200 * (BODIES[body].soles - BODIES[body].ankles)
    assert person[ANKLES, 1].max() == pytest.approx(floor - soles)
    assert person[INDEX["nose"], 1] < person[INDEX["neck"], 1] < person[INDEX["right_hip"], 1]
    assert abs(person[INDEX["neck"], 0] - 300) < 20
    hung = named_person(name, (300, 400), 200, body=BODIES[body], anchor="hips")
    hips = hung[[INDEX["right_hip"], INDEX["left_hip"]], :2].mean(0)
    np.testing.assert_allclose(hips, (300, 400), atol=1e-9)


@pytest.mark.parametrize("name", sorted(POSES))
def test_mirrored_people_do_it_with_the_other_hand(name: str) -> None:
    person, mirrored = (named_person(name, (0, 0), 1, mirror=flag) for flag in (False, True))
    for joint in ("wrist", "ankle", "ear"):
        np.testing.assert_allclose(mirrored[INDEX[f"left_{joint}"], 0], -person[INDEX[f"right_{joint}"], 0], atol=1e-12)
        np.testing.assert_allclose(mirrored[INDEX[f"left_{joint}"], 1], person[INDEX[f"right_{joint}"], 1])
    assert mirrored[INDEX["left_shoulder"], 0] > mirrored[INDEX["right_shoulder"], 0]  # still seen from the front


def test_poses_show_what_their_names_say() -> None:
    def wrists(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        person = named_person(name, (0, 0), 1, body=ADULT)
        return person[INDEX["right_wrist"]], person[INDEX["left_wrist"]], person

    right, left, person = wrists("waving")
    assert left[1] < person[INDEX["neck"], 1] < right[1]
    right, left, person = wrists("crossed_arms")
    assert right[0] > person[INDEX["right_hip"], 0] and left[0] < person[INDEX["left_hip"], 0]
    right, left, person = wrists("arms_up")
    assert max(right[1], left[1]) < person[INDEX["nose"], 1]
    heights = {name: np.ptp(named_person(name, (0, 0), 1)[:, 1]) for name in ("standing", "sitting", "kneeling")}
    assert heights["kneeling"] < 0.85 * heights["standing"] and heights["sitting"] < 0.85 * heights["standing"]


def test_adults_have_the_proportions_of_people() -> None:
    person = named_person("standing", (0, 0), 1, body=ADULT)
    assert np.ptp(person[:, 1]) == pytest.approx(0.88, abs=0.02)  # eyes to ankles, of the whole height
    head = person[INDEX["left_ear"], 0] - person[INDEX["right_ear"], 0]
    assert 7 < 1 / (1.5 * head) < 8.5  # a head is half as high again as wide


def test_unknown_poses_name_the_closest() -> None:
    with pytest.raises(MixshowError, match="found 'wavng'; did you mean 'waving'"):
        named_person("wavng", (0, 0), 1)
    with pytest.raises(MixshowError, match="found 'zzz'; known: standing, waving"):
        named_person("zzz", (0, 0), 1)
