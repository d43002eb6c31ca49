"""Concept files of every format, told apart by their contents."""

from __future__ import annotations

from pathlib import Path

from mixshow.core.errors import MixshowError
from mixshow.edlora.concept import Concept, load_concept
from mixshow.formats.mix_of_show import read_mix_of_show

_ZIP, _OLD_PICKLE = b"PK", b"\x80"


def read_concept(path: Path | str) -> Concept:
    """Read a concept: our `.safetensors`, or Mix-of-Show's `.pth`.

    Raises:
        MixshowError: missing, truncated, unsafe, or no concept file.
    """
    path = Path(path)
    if not path.is_file():
        raise MixshowError(f"{path}: no such concept file")
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise MixshowError(f"{path}: cannot be read ({error.strerror or error})") from error
    # PyTorch writes zip archives; files of versions before 1.6 are bare pickles of protocol 2.
    if start == _ZIP or (start[:1] == _OLD_PICKLE and path.suffix != ".safetensors"):
        return read_mix_of_show(path)
    return load_concept(path)
