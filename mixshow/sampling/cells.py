"""Rows and columns in short: `"1,2,1; 1"` are three columns above one row, the middle one twice as wide."""

from __future__ import annotations

import re
from itertools import accumulate

from mixshow.core.errors import MixshowError

Box = tuple[float, float, float, float]
_ROW = re.compile(r"\s*(?:([\d.]+)\s*:)?\s*([\d.]+(?:\s*,\s*[\d.]+)*)\s*")


def parse_cells(text: str) -> list[Box]:
    """The cells of `"1,2,1; 1"` in reading order.

    Rows are parted by semicolons, the widths of a row's columns by commas. `HEIGHT:` before a row gives its height
    (1): `"2: 1,1; 1"` has a row of two thirds of the picture's height above one of a third.

    Returns:
        `(left, top, right, bottom)` of each cell, in fractions of the picture.

    Raises:
        MixshowError: not of that form; names the row.
    """
    rows: list[tuple[float, list[float]]] = []
    for number, row in enumerate(text.split(";"), start=1):
        match = _ROW.fullmatch(row)
        try:
            height = float(match[1] or 1) if match else 0.0
            widths = [float(width) for width in match[2].split(",")] if match else []
        except ValueError:
            height, widths = 0.0, []
        if height <= 0 or min(widths, default=0.0) <= 0:
            raise MixshowError(
                f"row {number}: expected widths above 0 such as '1,2,1' or '2: 1,1', found '{row.strip()}'"
            )
        rows.append((height, widths))
    borders = _borders([height for height, _ in rows])
    return [
        (left, top, right, bottom)
        for (_, widths), top, bottom in zip(rows, borders, borders[1:])
        for left, right in zip(_borders(widths), _borders(widths)[1:])
    ]


def _borders(lengths: list[float]) -> list[float]:
    """Where parts of such lengths begin and end, from 0 to 1."""
    total = sum(lengths)
    return [end / total for end in accumulate(lengths, initial=0.0)]
