"""Mix-of-Show's texts for regions: region strings, and the layout files beside its pose pictures.

A region string is `[prompt]-*-[negative prompt]-*-[top, left, bottom, right]`, several joined by `|`, in pixels.
A layout file assigns `box1='[top, left, bottom, right]'` and `char1='...'` or `char1_prompt='[...]'`, as a shell would.
"""

from __future__ import annotations

import re
from pathlib import Path

from mixshow.core.errors import MixshowError
from mixshow.sampling.regions import PixelBox, Region

_SEPARATOR = "-*-"
_NUMBER = re.compile(r"\s*(-?\d+)\s*")
_ASSIGNMENT = re.compile(r"(\w+)=(?:'([^']*)'|\"([^\"]*)\")")
_SKIPPED = re.compile(r"(?:\s+|#[^\n]*)+")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def parse_regions(text: str, source: str = "region string") -> list[Region]:
    """Read a region string; an empty one has no regions.

    Raises:
        MixshowError: not of that form; names the column.
    """
    regions: list[Region] = []
    place = 0
    while text.strip() and place < len(text):
        prompt, place = _bracketed(text, place, "a prompt", source)
        place = _expect(text, place, _SEPARATOR, source)
        negative, place = _bracketed(text, place, "a negative prompt", source)
        place = _expect(text, place, _SEPARATOR, source)
        box, place = _box(text, place, source)
        regions.append(Region(box, prompt, negative))
        place += len(text[place:]) - len(text[place:].lstrip())
        if place < len(text):
            place = _expect(text, place, "|", source)
            if not text[place:].strip():
                raise _problem(source, place, "another region after '|'", text)
    return regions


def read_layout(path: Path | str, *, negative_prompt: str = "") -> list[Region]:
    """Read the regions of a layout file, in the order of their numbers.

    When a name is assigned twice the last one counts. `charN_prompt` goes before `charN`.

    Args:
        negative_prompt: for regions that name none, and for `${context_neg_prompt}`.

    Raises:
        MixshowError: unreadable or not of that form; names line and column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MixshowError(f"{path}: cannot be read as text ({error})") from error
    values = {"context_neg_prompt": negative_prompt}
    for name, value in _assignments(text, str(path)):

        def known(match: re.Match[str], name: str = name) -> str:
            if match[1] not in values:
                raise MixshowError(f"{path}: {name} uses ${{{match[1]}}}, which is assigned nowhere above it")
            return values[match[1]]

        values[name] = _VARIABLE.sub(known, value)
    numbers = sorted(int(match[1]) for name in values if (match := re.fullmatch(r"box(\d+)", name)))
    if not numbers:
        raise MixshowError(f"{path}: expected boxes such as box1='[top, left, bottom, right]', found none")
    regions = []
    for number in numbers:
        prompt = values.get(f"char{number}_prompt", values.get(f"char{number}"))
        if prompt is None:
            raise MixshowError(f"{path}: box{number} has no prompt; expected char{number}= or char{number}_prompt=")
        box, _ = _box(values[f"box{number}"], 0, f"{path}: box{number}")
        negative = values.get(f"char{number}_neg_prompt", negative_prompt)
        regions.append(Region(box, _unbracketed(prompt), _unbracketed(negative)))
    return regions


def _assignments(text: str, source: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    place = 0
    while True:
        if skipped := _SKIPPED.match(text, place):
            place = skipped.end()
        if place == len(text):
            return found
        match = _ASSIGNMENT.match(text, place)
        if match is None:
            line = text.count("\n", 0, place) + 1
            column = place - (text.rfind("\n", 0, place) + 1) + 1
            raise MixshowError(
                f"{source}, line {line} column {column}: expected name='value', found {_excerpt(text[place:])}"
            )
        found.append((match[1], match[2] if match[2] is not None else match[3]))
        place = match.end()


def _bracketed(text: str, place: int, what: str, source: str) -> tuple[str, int]:
    """The text between `[` and `]-*-`, and the place of that separator; brackets inside are the prompt's own."""
    start = _expect(text, place, "[", source, f"'[' and {what}")
    end = text.find("]" + _SEPARATOR, start)
    if end < 0:
        raise _problem(source, start, f"{what} that ends with ']{_SEPARATOR}'", text)
    return text[start:end].strip(), end + 1


def _box(text: str, place: int, source: str) -> tuple[PixelBox, int]:
    place = _expect(text, place, "[", source, "'[' and a box")
    numbers: list[int] = []
    for closing in (",", ",", ",", "]"):
        match = _NUMBER.match(text, place)
        if match is None:
            place += len(text[place:]) - len(text[place:].lstrip())
            raise _problem(source, place, f"a whole number of pixels (number {len(numbers) + 1} of 4)", text)
        numbers.append(int(match[1]))
        place = _expect(text, match.end(), closing, source, f"'{closing}' in [top, left, bottom, right]")
    return PixelBox.from_published(numbers), place


def _expect(text: str, place: int, what: str, source: str, description: str | None = None) -> int:
    """The place behind `what`, which must come next (blanks before it do not count)."""
    start = place + len(text[place:]) - len(text[place:].lstrip())
    if not text.startswith(what, start):
        raise _problem(source, start, description or f"'{what}'", text)
    return start + len(what)


def _problem(source: str, place: int, expected: str, text: str) -> MixshowError:
    return MixshowError(f"{source}, column {place + 1}: expected {expected}, found {_excerpt(text[place:])}")


def _excerpt(text: str) -> str:
    return repr(text[:20]) if text.strip() else "the end"


def _unbracketed(text: str) -> str:
    text = text.strip()
    return text[1:-1].strip() if text.startswith("[") and text.endswith("]") else text
