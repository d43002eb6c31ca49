"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mixshow.cli.main import main
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
def sd2(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A tiny base of the shape of Stable Diffusion 2.x, predicting velocities."""
    return tiny_base(tmp_path_factory.mktemp("sd2"), kind="sd2")


@pytest.fixture(scope="session")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A tiny base of the shape of Stable Diffusion XL."""
    return tiny_base(tmp_path_factory.mktemp("xl"), kind="xl")


@pytest.fixture(params=["tiny", "sd2", "xl"])
def each_base(request: pytest.FixtureRequest) -> Base:
    """A tiny base of each shape."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def tiny_folder(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as a diffusers folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_base(tiny, folder)
    return folder


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., int]:
    """`mixshow compose` of a scene's options, through its entry point."""

    def run(scene: dict, *arguments: str) -> int:
        path = tmp_path / "scene.yml"
        path.write_text(yaml.safe_dump(scene))
        return main(["compose", str(path), *arguments])

    return run
