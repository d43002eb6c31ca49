"""Reading and writing files so that no run leaves half of one behind.

Everything is written to a temporary name beside the target, synced and renamed: an interrupted run leaves the
old file or the new one. Pickles are only ever read with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mixshow.core.errors import MixshowError

Metadata = dict[str, str]


def _cannot_write(path: Path, error: OSError) -> MixshowError:
    return MixshowError(
        f"{path}: could not be written ({error.strerror or error}); free some space or choose another place, "
        "nothing was left behind"
    )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def written_atomically(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it when the block ends well, removed when it does not.

    Raises:
        MixshowError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _sync(temporary)
        # mkstemp makes private files; outputs get the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    except SafetensorError as error:
        raise MixshowError(f"{path}: could not be written ({error}); nothing was left behind") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_atomically(folder: Path | str) -> Iterator[Path]:
    """Like `written_atomically`, for a whole folder. An existing folder is replaced only at the end.

    Of a link the folder that it points to is written, so that it stays on the disk that it was put on.

    Raises:
        MixshowError: the disk is full or the place cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        temporary.chmod(0o755)
        yield temporary
        previous = None
        if folder.exists():
            previous = folder.with_name(f".{folder.name}.previous.partial")
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(folder, previous)
        os.replace(temporary, folder)
        if previous is not None:
            shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def files_written_together(folder: Path | str) -> Iterator[Path]:
    """A temporary folder in `folder`, whose files take their places in it when the block ends well.

    What can fail, for want of space say, has happened before the first of them is replaced.

    Raises:
        MixshowError: the disk is full or the folder cannot be written.
    """
    folder = Path(folder)
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".files.", suffix=".partial", dir=folder))
        yield temporary
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file to another place too, without a second copy on the disk where the system can.

    A file here is never changed, only replaced, so that neither name sees what happens to the other.

    Raises:
        MixshowError: it cannot be written.
    """
    if target.exists() and target.samefile(source):
        return
    with written_atomically(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:  # another disk, or a system without links
            shutil.copyfile(source, temporary)


def write_text(path: Path | str, text: str) -> None:
    """Write a text file atomically (UTF-8)."""
    with written_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        MixshowError: the file is missing or is no JSON; names line and column.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MixshowError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise MixshowError(f"{path}: expected JSON text in UTF-8, found other bytes") from error
    except json.JSONDecodeError as error:
        raise MixshowError(f"{path}: not valid JSON, line {error.lineno} column {error.colno}: {error.msg}") from error


def write_safetensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Metadata | None = None) -> None:
    """Write tensors (moved to the CPU, made contiguous) with string metadata, atomically."""
    ready = {key: tensor.detach().to("cpu").contiguous().clone() for key, tensor in tensors.items()}
    with written_atomically(path) as temporary:
        save_file(ready, temporary, metadata=metadata)


def read_safetensors(path: Path | str) -> tuple[dict[str, Tensor], Metadata]:
    """Read all tensors of a safetensors file into memory, with its metadata.

    Raises:
        MixshowError: the file is missing, truncated or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise MixshowError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # Cloned, because a memory-mapped tensor changes under us when the file is written again.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise MixshowError(
            f"{path}: expected a safetensors file, found something else or a truncated one ({error}); "
            "download or train it again"
        ) from error


def read_safetensors_shapes(path: Path | str) -> dict[str, tuple[int, ...]]:
    """The shapes of a safetensors file's tensors, by name; the tensors stay on the disk.

    Raises:
        MixshowError: the file is missing, truncated or no safetensors file.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise MixshowError(f"{path}: expected a safetensors file, found something else ({error})") from error


def read_safetensors_metadata(path: Path | str) -> Metadata:
    """The metadata of a safetensors file; its tensors stay on the disk.

    Raises:
        MixshowError: the file is missing, truncated or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, struct.error) as error:
        raise MixshowError(
            f"{path}: expected a safetensors file, found something else or a truncated one ({error})"
        ) from error


def holds_pickle(path: Path) -> bool:
    """Whether a file is a PyTorch pickle rather than a safetensors file, by its first bytes.

    Raises:
        MixshowError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise MixshowError(f"{path}: cannot be read ({error.strerror or error})") from error
    # PyTorch writes zip archives; files of versions before 1.6 are bare pickles of protocol 2.
    return start == b"PK" or (start[:1] == b"\x80" and path.suffix != ".safetensors")


def read_pickled_weights(path: Path | str, *, mapped: bool = False) -> Any:
    """Read a `.pth`/`.bin` of tensors in plain containers; code in the pickle is never run.

    Args:
        mapped: the tensors stay on the disk until they are used. Bare pickles, the form of versions before 1.6, are
            read all the same.

    Raises:
        MixshowError: the file is missing, truncated, or holds anything but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise MixshowError(f"{path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except Exception as error:  # torch raises a dozen kinds here, all of which mean the same to a user
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MixshowError(
            f"{path}: expected a PyTorch file of plain tensors, found a truncated or unsafe one ({first_line})"
        ) from error


def sha256(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
