"""A small scene."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixshow.models import Base
from tests.sampling.scenes import PERSON
from tests.tiny import tiny_adapter


@pytest.fixture(scope="module")
def adapter_folder(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    tiny_adapter(tiny).save_pretrained(folder)
    return folder


@pytest.fixture
def scene(tiny_folder: Path, adapter_folder: Path, tmp_path: Path) -> dict:
    """A small scene that works."""
    return {
        "model": str(tiny_folder),
        "size": [128, 64],
        "prompt": "a picture of the beach",
        "pose": {"people": [PERSON], "adapter": str(adapter_folder)},
        "regions": [{"box": [0, 0, 0.5, 1], "prompt": "a boy"}, {"box": [0.5, 0, 1, 1], "prompt": "a girl"}],
        "steps": 2,
        "guidance": 3,
        "output": str(tmp_path / "scene.png"),
    }
