"""Seeds as options and command lines give them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mixshow.core.errors import MixshowError

_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def parse_seeds(given: str | int | Iterable[str | int]) -> list[int]:
    """The seeds of `"0-3"`, `"1,5,7-9"`, 4, or a list of such.

    Raises:
        MixshowError: not of that form; names the part.
    """
    if isinstance(given, int):
        return [given]
    if not isinstance(given, str):
        return [seed for part in given for seed in parse_seeds(part)]
    seeds: list[int] = []
    for part in given.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise MixshowError(f"expected numbers and ranges such as 0-3 or 1,5,7, found '{part}'")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return seeds
