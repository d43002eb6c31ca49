"""Progress bars and log lines, written to standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")
log = logging.getLogger("mixshow")


class _ToStandardError(logging.Handler):
    """Writes to whatever standard error is at the time, so that it can be redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def set_up_logging(verbose: bool = False) -> None:
    """Plain lines on standard error; call once, from a command."""
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    if not log.handlers:
        handler = _ToStandardError()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False


def progress_bar(total: int, what: str, *, initial: int = 0, enabled: bool = True) -> Any:
    """A tqdm bar with the time left; a line every half minute where there is no terminal."""
    interval = 0.3 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=total, desc=what, initial=initial, disable=not enabled, mininterval=interval, maxinterval=interval * 2
    )


def tracked(items: Iterable[T], what: str, *, total: int | None = None, enabled: bool = True) -> Iterator[T]:
    """Iterate with a progress bar."""
    if total is None:
        items = list(items)
        total = len(items)
    with progress_bar(total, what, enabled=enabled) as bar:
        for item in items:
            yield item
            bar.update()
