"""Tensors of a safetensors file by their place in it, read one at a time without mapping the whole file.

A file that is mapped anew for every tensor is also parsed anew, and its pages come in one by one; of statistics, which
are read some thousand times, that takes longer than solving. The format: eight bytes with the length of a JSON header,
the header, all tensors one after the other (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from pathlib import Path

import torch
from torch import Tensor

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        start: where its bytes begin.
        version: of the file; of another one the place would be another.
    """

    path: Path
    dtype: torch.dtype
    shape: torch.Size
    start: int
    version: tuple[int, int, int]

    def read(self) -> Tensor:
        """Its values as they are stored, on the CPU.

        Raises:
            OSError: the file is no longer there, or another one, or too short.
        """
        values = torch.empty(self.shape.numel(), dtype=self.dtype)
        with self.path.open("rb", buffering=0) as file:
            if _version(file.fileno()) != self.version:
                raise OSError("it was replaced while it was in use")
            file.seek(self.start)
            _fill(values, file)
        return values.reshape(self.shape)


def _fill(values: Tensor, file: io.FileIO) -> None:
    content, place = values.view(torch.uint8).numpy().data, 0
    while place < len(content):
        count = file.readinto(content[place:])
        if not count:
            raise OSError("it ends too early")
        place += count


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of floating point numbers in a file that is known to be whole, by name.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header, version = json.loads(file.read(length)), _version(file.fileno())
    first = 8 + length
    return {
        name: StoredTensor(
            path, _TYPES[about["dtype"]], torch.Size(about["shape"]), first + about["data_offsets"][0], version
        )
        for name, about in header.items()
        if name != "__metadata__" and about["dtype"] in _TYPES
    }


def _version(handle: int) -> tuple[int, int, int]:
    about = os.fstat(handle)
    return about.st_ino, about.st_size, about.st_mtime_ns
