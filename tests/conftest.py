"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixshow.models.base import Base, save_base
from tests.tiny import tiny_base


@pytest.fixture(scope="session")
def shared_fixtures() -> Path:
    """Folder of the large reference fixtures, which a clone of the project does not carry."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "fixtures"
    if not folder.is_dir():
        pytest.skip("the reference fixtures are not beside this clone")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """One tiny random base for the session; tests leave it as they found it."""
    return tiny_base(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_folder(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as a diffusers folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_base(tiny, folder)
    return folder
