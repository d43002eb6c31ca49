"""The procedural world: a pure function of its seed, with labels that fit the pictures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixshow.core.errors import MixshowError
from mixshow.puppets.captions import caption
from mixshow.puppets.cast import CAST, cast_scene, member, near_miss, write_cast
from mixshow.puppets.features import EXTRAS
from mixshow.puppets.networks import MAX_TOKENS
from mixshow.puppets.tokenizer import make_tokenizer
from mixshow.puppets.training.latents import GROUPS
from mixshow.puppets.world import SQUARE, WIDE, sample_scene
from mixshow.sampling.joints import INDEX


def test_a_scene_is_a_function_of_seed_and_number() -> None:
    first, again, other = (sample_scene(3, index, WIDE).render() for index in (5, 5, 6))
    assert first.tobytes() == again.tobytes() != other.tobytes()


@pytest.mark.parametrize(("size", "count"), [(SQUARE, 1), (SQUARE, 2), (WIDE, 1), (WIDE, 5)])
def test_masks_and_boxes_fit_the_skeletons(size: tuple[int, int], count: int) -> None:
    for index in range(6):
        scene = sample_scene(11, index, size, count)
        assert scene.render().size == size
        assert len(scene.puppets) == count
        for puppet in scene.puppets:
            assert puppet.mask is not None
            assert puppet.box is not None
            assert puppet.keypoints.shape == (18, 3)
            left, top, right, bottom = puppet.box
            mask = np.asarray(puppet.mask)
            x, y, visible = puppet.keypoints[INDEX["nose"]]
            assert visible == 1
            assert mask[int(y), int(x)] > 200
            inside = puppet.keypoints[puppet.keypoints[:, 2] > 0]
            assert (inside[:, 0] >= left - 1).all() and (inside[:, 0] <= right + 1).all()
            assert (inside[:, 1] >= top - 1).all() and (inside[:, 1] <= bottom + 1).all()


def test_puppets_stand_from_left_to_right() -> None:
    for index in range(8):
        hips = [puppet.keypoints[INDEX["neck"], 0] for puppet in sample_scene(12, index, WIDE, 4).puppets]
        assert hips == sorted(hips)


def test_the_base_world_never_shows_a_special_feature() -> None:
    for group in GROUPS.values():
        for index in range(50):
            assert all(not puppet.look.extras for puppet in group.scene(index).puppets)


def test_every_member_has_features_and_the_near_miss_has_none() -> None:
    assert len(CAST) >= 8
    for name, look in CAST.items():
        assert look.extras and set(look.extras) <= set(EXTRAS)
        miss = near_miss(name)
        assert miss.extras == ()
        assert (miss.kind, miss.hair, miss.shirt) == (look.kind, look.hair, look.shirt)
    with pytest.raises(MixshowError, match="did you mean 'pip'"):
        member("pipp")


def test_features_change_the_picture() -> None:
    for name in CAST:
        scene, plain = cast_scene(name, 2), cast_scene(name, 2)
        plain.puppets[0].body = dataclasses.replace(plain.puppets[0].body, look=near_miss(name))
        difference = np.abs(np.asarray(scene.render(), int) - np.asarray(plain.render(), int))
        assert (difference.max(axis=2) > 60).sum() > 250, name


def test_captions_are_lower_case_and_short_enough() -> None:
    tokenizer = make_tokenizer()
    for index in range(300):
        scene = sample_scene(13, index, WIDE if index % 2 else SQUARE)
        text = caption(scene, np.random.default_rng(index))
        assert text == text.lower()
        assert len(tokenizer(text).input_ids) <= MAX_TOKENS - 2, text


def test_the_cast_is_written_as_a_data_set(tmp_path: Path) -> None:
    written = write_cast(tmp_path, ["pip", "moss"], pictures=3)
    assert list(written) == ["pip", "moss"]
    for name in written:
        for index in range(3):
            picture = Image.open(tmp_path / name / "image" / f"{index:02d}.png")
            mask = Image.open(tmp_path / name / "mask" / f"{index:02d}.png")
            text = (tmp_path / name / "caption" / f"{index:02d}.txt").read_text(encoding="utf-8")
            assert picture.size == mask.size == SQUARE
            assert mask.getextrema() == (0, 255)
            assert text.count("<TOK>") == 1
            assert not any(word in text for word in ("hair", "shirt", "trousers"))
