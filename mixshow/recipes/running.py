"""Previews on the disk while pictures are made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mixshow.models import Base
from mixshow.sampling.pictures import picture_grid, save_picture
from mixshow.sampling.running import running_pictures

_COLUMNS = 4


@contextlib.contextmanager
def running_previews(base: Base, path: Path, every: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A callback for `compose` that writes a batch's pictures as they are by then; at the end the file is removed.

    Args:
        path: PNG to write, anew each time.
        every: so many steps; 0: never.
    """
    path, number = _free(path), 0

    def show(step: dict[str, Any]) -> None:
        nonlocal number
        if every and (step["step"] + 1) % every == 0:
            number += 1
            save_picture(picture_grid(running_pictures(base, step), _COLUMNS), path)

    try:
        yield show
    finally:
        if number:
            path.unlink(missing_ok=True)


def _free(path: Path) -> Path:
    """The path, or one like it where no file is."""
    names = (path.with_name(f"{path.stem}{ending}{path.suffix}") for ending in ("", *(f"_{n}" for n in range(1, 1000))))
    return next(name for name in names if not name.exists())
