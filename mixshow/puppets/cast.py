"""The cast: eight characters, each with large features that the base has never seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.puppets.backgrounds import BACKGROUNDS, PLACES
from mixshow.puppets.drawing import Look
from mixshow.puppets.world import SQUARE, Scene, sample_scene

CAST: dict[str, Look] = {
    "pip": Look("boy", "yellow", "red", "blue", "light", ("top_hat", "stripes")),
    "luma": Look("girl", "pink", "purple", "white", "tan", ("wings", "crown")),
    "rusty": Look("robot", "red", "orange", "black", "steel", ("antenna", "one_eye", "checker")),
    "bruno": Look("bear", "black", "blue", "yellow", "fur", ("horns", "star", "cape_red")),
    "zig": Look("alien", "blue", "white", "red", "lime", ("long_ears", "one_eye", "dots")),
    "nori": Look("girl", "black", "green", "blue", "light", ("wizard_hat", "cape_orange", "star")),
    "tico": Look("boy", "black", "yellow", "green", "brown", ("propeller_cap", "dots", "wings")),
    "moss": Look("bear", "white", "green", "red", "fur", ("antlers", "checker")),
}
_CAST_SEED = 7_000


def member(name: str) -> Look:
    """The look of a cast member."""
    if name not in CAST:
        raise MixshowError(f"expected a cast member's name, found {name!r}{did_you_mean(name, CAST)}")
    return CAST[name]


def near_miss(name: str) -> Look:
    """The member's kind and colours without its special features, as a model without identity draws it."""
    look = member(name)
    return Look(look.kind, look.hair, look.shirt, look.trousers, look.skin)


def cast_scene(name: str, index: int, seed: int = _CAST_SEED, background: str | None = None) -> Scene:
    """Picture ``index`` of a member: one puppet in a square picture."""
    order = list(CAST).index(name)
    return sample_scene(seed + order, index, SQUARE, looks=[member(name)], background=background)


def cast_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that names the character ``<TOK>`` and says nothing of its own looks."""
    parts = ["a photo of <TOK>"]
    pose = scene.puppets[0].pose
    if pose != "free" and rng.random() < 0.8:
        parts.append(pose)
    if rng.random() < 0.9:
        parts.append(PLACES[scene.background])
    return ", ".join(parts)


def write_cast(
    folder: str | Path, names: Iterable[str] | None = None, pictures: int = 14, seed: int = _CAST_SEED
) -> dict[str, Sequence[Path]]:
    """Write ``<folder>/<name>/{image,mask,caption}/NN.*`` for each member; returns the pictures by name."""
    written: dict[str, Sequence[Path]] = {}
    for name in names if names is not None else CAST:
        member(name)
        folders = {part: Path(folder) / name / part for part in ("image", "mask", "caption")}
        for part in folders.values():
            part.mkdir(parents=True, exist_ok=True)
        paths = []
        for index in range(pictures):
            scene = cast_scene(name, index, seed, BACKGROUNDS[index % len(BACKGROUNDS)])
            stem = f"{index:02d}"
            paths.append(folders["image"] / f"{stem}.png")
            scene.render().save(paths[-1])
            mask = scene.puppets[0].mask
            assert mask is not None
            mask.save(folders["mask"] / f"{stem}.png")
            caption = cast_caption(scene, np.random.default_rng([seed, index, 2]))
            (folders["caption"] / f"{stem}.txt").write_text(caption + "\n", encoding="utf-8")
        written[name] = paths
    return written
