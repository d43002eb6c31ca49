"""Prompt templates: the caption is put into a random sentence, so that the concept is not tied to one wording."""

from __future__ import annotations

import numpy as np

_KINDS_OF_PICTURE = ("photo", "picture", "close-up", "snapshot", "rendering", "depiction")
_QUALITIES = ("", "good ", "bright ", "dark ", "clean ", "cropped ", "nice ")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "object": (
        *(f"a {quality}{kind} of a {{}}" for kind in ("photo", "picture") for quality in _QUALITIES),
        *(f"one {kind} showing the {{}}" for kind in _KINDS_OF_PICTURE),
        "the {}, seen from near by",
        "a {} in full view",
        "here is my {}",
        "{}",
    ),
    "human": (
        *(f"a {quality}{kind} of {{}}" for kind in ("photo", "portrait") for quality in _QUALITIES),
        *(f"one {kind} showing {{}}" for kind in _KINDS_OF_PICTURE),
        "{} in front of the camera",
        "this is {}",
        "{}",
    ),
    "style": (
        *(f"a {quality}painting in the style of {{}}" for quality in _QUALITIES),
        *(f"one {kind} in the style of {{}}" for kind in _KINDS_OF_PICTURE),
        "artwork after the manner of {}",
        "a scene drawn like {}",
        "{}",
    ),
}


def in_template(caption: str, kind: str, rng: np.random.Generator) -> str:
    """The caption inside a random template of a kind (`object`, `human`, `style`)."""
    choices = TEMPLATES[kind]
    return choices[int(rng.integers(len(choices)))].replace("{}", caption)
