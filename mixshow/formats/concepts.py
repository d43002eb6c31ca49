"""Concept files of every format, told apart by their contents."""

from __future__ import annotations

from pathlib import Path

from mixshow.core.errors import MixshowError
from mixshow.core.files import holds_pickle
from mixshow.edlora.concept import Concept, load_concept
from mixshow.formats.mix_of_show import read_mix_of_show


def read_concept(path: Path | str) -> Concept:
    """Read a concept: our `.safetensors`, or Mix-of-Show's `.pth`.

    Raises:
        MixshowError: missing, truncated, unsafe, or no concept file.
    """
    path = Path(path)
    if not path.is_file():
        raise MixshowError(f"{path}: no such concept file")
    return read_mix_of_show(path) if holds_pickle(path) else load_concept(path)
