"""Checkpoints: the concept so far and everything needed to train on as if nothing had happened."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mixshow.core.errors import MixshowError
from mixshow.core.files import folder_written_atomically, read_pickled_weights
from mixshow.core.progress import log
from mixshow.edlora.concept import Concept, save_concept

CONCEPT_FILE, STATE_FILE = "concept.safetensors", "state.pt"
_NAME = re.compile(r"step_(\d+)")


def checkpoint_folders(folder: Path) -> list[tuple[int, Path]]:
    """`(step, folder)` of all whole checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in matches if match and (path / STATE_FILE).is_file())


def write_checkpoint(folder: Path, step: int, concept: Concept, state: Mapping[str, Any], *, keep: int) -> Path:
    """Write one checkpoint whole or not at all, then remove all but the newest `keep`.

    Args:
        state: plain values and tensors only, so that reading it runs no code.

    Raises:
        MixshowError: the disk is full or the folder cannot be written.
    """
    place = folder / f"step_{step:05d}"
    with folder_written_atomically(place) as temporary:
        save_concept(concept, temporary / CONCEPT_FILE)
        # Through memory, because torch's own file writer reports a full disk as a programming error.
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        (temporary / STATE_FILE).write_bytes(buffer.getbuffer())
    for _, old in checkpoint_folders(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def read_newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state of the newest readable checkpoint, or None when there is none. Unreadable ones are passed over."""
    for _, place in reversed(checkpoint_folders(folder)):
        try:
            state = read_pickled_weights(place / STATE_FILE)
        except MixshowError as error:
            log.warning("%s; taking the checkpoint before it", error)
            continue
        if isinstance(state, dict):
            return state
    return None


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a run that starts anew."""
    for _, place in checkpoint_folders(folder):
        shutil.rmtree(place, ignore_errors=True)


def check_agreement(folder: Path, made_with: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on from checkpoints of other options.

    Args:
        made_with: options by name, as the checkpoints have them.

    Raises:
        MixshowError: they differ; the first that does is named.
    """
    names = [*now, *(name for name in made_with if name not in now)]
    # An option that one of them does not know is one that was not there yet, which null stands for.
    other = [name for name in names if now.get(name) != made_with.get(name)]
    if other:
        name = other[0]
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        raise MixshowError(
            f"{folder}: its checkpoints were made with other options ({name}: {made_with.get(name)}, now "
            f"{now.get(name)}{more}); restore them to resume, start anew with --no-resume, or choose another output"
        )
