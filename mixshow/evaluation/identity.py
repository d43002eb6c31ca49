"""Identity: does the judge see the right character?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from mixshow.evaluation.interval import Share, share_of

# Prompts that no training caption and no fusion prompt uses word for word; {concept} is the character.
HELD_OUT_PROMPTS = (
    "a picture of {concept} in the snow",
    "{concept} at the beach",
    "a nice photo of {concept}, standing on a stage",
    "{concept}, jumping in the desert",
    "a painting of {concept} in the forest",
    "a good picture of {concept} at night",
    "{concept} walking in a meadow",
    "a cool photo of {concept}, waving in a room",
    "a rendition of {concept} in the sea",
    "{concept} in the city, standing",
)


class Judge(Protocol):
    """Whatever names the character in a picture; "none" for everybody else."""

    def identities(self, images: Sequence[Image.Image]) -> list[str]: ...


def identity_share(judge: Judge, pictures: Sequence[Image.Image], expected: Sequence[str]) -> Share:
    """Share of pictures in which the judge sees the expected character.

    Args:
        pictures: crops or whole pictures of one character each.
        expected: its name, per picture.
    """
    return share_of([seen == wanted for seen, wanted in zip(judge.identities(pictures), expected)])


def confusion(seen: Sequence[str], expected: Sequence[str], names: Sequence[str]) -> list[list[object]]:
    """Rows of a confusion table: the expected name, then how often each of `names` was seen."""
    pairs = list(zip(expected, seen))
    return [[row, *(pairs.count((row, column)) for column in names)] for row in names]
