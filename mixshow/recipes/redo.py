"""Some regions of a picture that mixshow made, made again in it: the character that failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixshow.config.load import load
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError
from mixshow.recipes.compose import compose_options
from mixshow.sampling.pictures import read_about


def redo_file(path: Path, regions: Sequence[str], overrides: Sequence[str] = ()) -> list[Path]:
    """Make regions of a picture again and write it to `NAME_redo.png` beside it, every other pixel as it was.

    The scene is that of the picture's metadata and the seed the next one, unless overrides give another.

    Args:
        regions: numbers from 0, or names of concepts.

    Returns:
        The files written.

    Raises:
        MixshowError: no picture that mixshow made, or everything that is wrong with the scene.
    """
    if path.suffix.lower() != ".png":
        raise MixshowError(f"--redo: expected a picture that mixshow made, found '{path}'")
    about = read_about(path)
    seed = about.get("seed", 0) + 1
    contents = {
        **about.get("scene", {}),
        "image": {"file": str(path), "redo": list(regions)},
        "seeds": [seed],
        "batch_size": 1,
        "output": str(path.with_name(f"{path.stem}_redo.png")),
    }
    return compose_options(load(SceneOptions, path, overrides, values=contents), str(path)).paths
