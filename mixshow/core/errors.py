"""Errors meant for people: one line each, saying what was expected, what came, and what to do."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence


class MixshowError(Exception):
    """A mistake of the user's input. The command line prints its text and exits with status 2."""


class OptionsError(MixshowError):
    """All problems of one options file together, one line each.

    Args:
        source: the file (or other origin) the options came from.
        problems: one sentence per problem.
    """

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.source = source
        self.problems = list(problems)
        super().__init__("\n".join(f"{source}: {problem}" for problem in self.problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` when a known word is close, otherwise the list of known words."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""


def first_line(error: BaseException) -> str:
    """What an error of another package says, in one line; its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def explained(expectation: str) -> Iterator[None]:
    """Turn whatever error loaders raise within the block (hub, safetensors, json, model classes) into one line.

    Args:
        expectation: of what, and what was expected; the error's own first line stands behind it in brackets.
    """
    try:
        yield
    except MixshowError:
        raise
    except Exception as error:
        raise MixshowError(f"{expectation} ({first_line(error)})") from error
