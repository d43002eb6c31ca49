"""The judge and the key-point finder on renders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mixshow.core.errors import MixshowError
from mixshow.puppets.cast import CAST, cast_scene, near_miss
from mixshow.puppets.judge import HEADS, Judge, JudgeNet, confusion_table, letterbox
from mixshow.puppets.keypoints import CELL, MAP, POINT_ROWS, KeypointFinder, expected_positions
from mixshow.puppets.weights_file import WEIGHTS
from mixshow.puppets.world import SQUARE, sample_scene


def test_letterboxing_keeps_the_proportions() -> None:
    square = np.asarray(letterbox(Image.new("RGB", (40, 80), (255, 0, 0))))
    assert square.shape == (96, 96, 3)
    assert (square[:, :23] == 128).all() and (square[:, 25:71, 0] == 255).all()


def test_answers_have_the_shape_and_words_of_the_heads() -> None:
    judge = Judge(JudgeNet())
    crops = [Image.new("RGB", (30, 60)), Image.new("RGB", (128, 128))]
    assert judge.probabilities(crops).shape == (2, len(HEADS["identity"]))
    assert all(name in HEADS["identity"] for name in judge.identities(crops))
    for answers in judge.attributes(crops):
        assert all(answer in HEADS[name] for name, answer in answers.items())


def test_confusion_table_counts() -> None:
    table = confusion_table(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
    assert "| a | 1 | 1 |" in table and "| b | 0 | 1 |" in table


def test_expected_positions_are_in_pixels() -> None:
    maps = torch.full((1, 1, MAP * MAP), -30.0)
    maps[0, 0, 3 * MAP + 7] = 0.0
    assert torch.allclose(expected_positions(maps), torch.tensor([[[7.5 * CELL, 3.5 * CELL]]]), atol=0.1)


def test_missing_weights_say_what_to_do(tmp_path) -> None:
    with pytest.raises(MixshowError, match=r"train_puppets\.py"):
        Judge.load(tmp_path / "judge.safetensors")


@pytest.mark.skipif(not (WEIGHTS / "judge.safetensors").exists(), reason="the judge's weights are not in this checkout")
def test_the_shipped_judge_knows_the_cast_and_is_not_fooled() -> None:
    judge = Judge.load()
    members = [cast_scene(name, 900 + i).render() for name in CAST for i in range(4)]
    truth = [name for name in CAST for _ in range(4)]
    assert np.mean([a == b for a, b in zip(truth, judge.identities(members))]) >= 0.9
    misses = [sample_scene(901, i, SQUARE, looks=[near_miss(name)]).render() for i, name in enumerate([*CAST] * 4)]
    assert np.mean([answer == "none" for answer in judge.identities(misses)]) >= 0.9


@pytest.mark.skipif(
    not (WEIGHTS / "keypoints.safetensors").exists(), reason="the finder's weights are not in this checkout"
)
def test_the_shipped_finder_finds_heads_hands_and_feet() -> None:
    scenes = [sample_scene(902, i, SQUARE, count=1) for i in range(16)]
    found = KeypointFinder.load().find([scene.render() for scene in scenes])
    truth = np.stack([scene.puppets[0].keypoints[list(POINT_ROWS), :2] for scene in scenes])
    assert np.linalg.norm(found - truth, axis=2).mean() < 6
