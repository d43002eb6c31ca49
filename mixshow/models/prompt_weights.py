"""Weights in prompts: `(words:1.3)`, `(words)`, `[words]`, and BREAK.

The grammar is that of AUTOMATIC1111's stable-diffusion-webui, which most prompts in circulation are written in, except
that a bracket without its partner is refused here.
"""

from __future__ import annotations

import dataclasses
import math
import re

from mixshow.core.errors import MixshowError

_STEP = 1.1  # what a pair of brackets multiplies or divides by
_MARK = re.compile(r"\\[()\[\]\\]|:\s*([^\s:()\[\]\\]*)\s*\)|\bBREAK\b|[()\[\]]")
_CLOSING = {")": "(", "]": "["}
_SHOWN = 40


@dataclasses.dataclass(frozen=True)
class Words:
    """Some words of a prompt that have one weight; 1: none."""

    text: str
    weight: float = 1.0


def parse_weights(prompt: str) -> list[list[Words]]:
    r"""The words of a prompt with their weights.

    `(words)` weighs 1.1, `[words]` 1/1.1, and brackets inside brackets multiply; `(words:1.3)` weighs 1.3. Brackets
    that are meant are written `\(`, `\)`, `\[` and `\]`, and `\\` is one backslash.

    Returns:
        One list for each part that `BREAK` parts the prompt in.

    Raises:
        MixshowError: a bracket without its partner, or a weight that is no number; names the column.

    Example:
        >>> parse_weights("a (red:1.5) hat")
        [[Words(text='a ', weight=1.0), Words(text='red', weight=1.5), Words(text=' hat', weight=1.0)]]
    """
    parts: list[list[Words]] = [[]]
    opened: list[tuple[str, int, int, int]] = []  # bracket, its column, and the part and words it began at
    place = 0
    for mark in _MARK.finditer(prompt):
        _add(parts[-1], prompt[place : mark.start()])
        place, text = mark.end(), mark[0]
        if text.startswith("\\"):
            _add(parts[-1], text[1])
        elif text == "BREAK":
            parts.append([])
        elif text in "([":
            opened.append((text, mark.start(), len(parts) - 1, len(parts[-1])))
        elif not opened or opened[-1][0] != _CLOSING[text[-1]]:
            raise _problem(prompt, mark.end() - 1, f"'{_CLOSING[text[-1]]}' before it", f"'{text[-1]}'")
        else:
            factor = _weight(prompt, mark) if text.startswith(":") else _STEP if text == ")" else 1 / _STEP
            _, _, part, words = opened.pop()
            _multiply(parts, part, words, factor)
    _add(parts[-1], prompt[place:])
    if opened:
        bracket, column, _, _ = opened[-1]
        raise _problem(prompt, column, "its partner behind it", f"'{bracket}' alone")
    return [_merged(words) for words in parts]


def weights_problem(prompt: str) -> str | None:
    """What is wrong with a prompt's brackets; None when nothing is."""
    try:
        parse_weights(prompt)
    except MixshowError as error:
        return str(error)
    return None


def _add(words: list[Words], text: str) -> None:
    if text:
        words.append(Words(text))


def _multiply(parts: list[list[Words]], part: int, first: int, factor: float) -> None:
    """Weigh all words from number `first` of a part on."""
    for number in range(part, len(parts)):
        start = first if number == part else 0
        parts[number][start:] = [Words(word.text, word.weight * factor) for word in parts[number][start:]]


def _weight(prompt: str, mark: re.Match[str]) -> float:
    try:
        weight = float(mark[1])
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise _problem(prompt, mark.start(), "a weight such as ':1.3)'", f"'{mark[0]}'")
    return weight


def _merged(words: list[Words]) -> list[Words]:
    """The same with neighbours of one weight together: escaped brackets part no words."""
    found: list[Words] = []
    for word in words:
        if found and found[-1].weight == word.weight:
            word = Words(found.pop().text + word.text, word.weight)
        found.append(word)
    return found


def _problem(prompt: str, column: int, expected: str, found: str) -> MixshowError:
    shown = prompt if len(prompt) <= _SHOWN else prompt[: _SHOWN - 3] + "..."
    return MixshowError(
        f"prompt '{shown}', column {column + 1}: expected {expected}, found {found}; write \\( \\) \\[ \\] for "
        "brackets that are meant, or prompt_weights: false"
    )
