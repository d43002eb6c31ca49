"""Captions: the concept's place holder, tags, and their shuffling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mixshow.core.errors import MixshowError

PLACE_HOLDER = "<TOK>"


def read_caption(path: Path) -> str:
    """The first line of a caption file that holds anything.

    Raises:
        MixshowError: unreadable or empty.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise MixshowError(f"{path}: caption cannot be read as UTF-8 text ({type(error).__name__})") from error
    if not any(lines):
        raise MixshowError(f"{path}: caption is empty; write one line with {PLACE_HOLDER} in it")
    return next(line for line in lines if line)


def bind_concept(text: str, tokens: Sequence[str]) -> str:
    """The text with the concept's tokens for `<TOK>`, and runs of blanks as one."""
    return re.sub(r"\s+", " ", text.replace(PLACE_HOLDER, " ".join(tokens))).strip()


def names_concept(text: str, tokens: Sequence[str]) -> bool:
    """Whether a caption names the concept, by `<TOK>` or by its own tokens."""
    return PLACE_HOLDER in text or all(token in text for token in tokens)


def shuffled_tags(caption: str, keep: int, rng: np.random.Generator) -> str:
    """Comma-separated tags in random order, the first `keep` staying in front."""
    tags = [tag.strip() for tag in caption.split(",")]
    rest = tags[keep:]
    return ", ".join([*tags[:keep], *(rest[i] for i in rng.permutation(len(rest)))])
