"""Counting what a judge sees."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from mixshow.evaluation.identity import HELD_OUT_PROMPTS, confusion, identity_share
from mixshow.fusion.prompts import HELD_OUT, PICTURES, TEXT


class ColourJudge:
    """Names red pictures pip, all others nobody."""

    def identities(self, images: Sequence[Image.Image]) -> list[str]:
        return ["pip" if image.getpixel((0, 0)) == (255, 0, 0) else "none" for image in images]


def test_identity_share() -> None:
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ("red", "red", "blue", "blue")]
    share = identity_share(ColourJudge(), pictures, ["pip", "luma", "pip", "none"])
    assert (share.hits, share.trials) == (2, 4)


def test_confusion_counts_by_expected_name() -> None:
    table = confusion(["pip", "none", "pip"], ["pip", "pip", "luma"], ["pip", "luma", "none"])
    assert table == [["pip", 1, 0, 1], ["luma", 1, 0, 0], ["none", 0, 0, 0]]


def test_scored_prompts_are_used_nowhere_in_fusion() -> None:
    assert not set(HELD_OUT_PROMPTS) & {*PICTURES, *TEXT}
    assert not set(HELD_OUT) & {*PICTURES, *TEXT}
    assert all("{concept}" in prompt for prompt in HELD_OUT_PROMPTS)
