"""Labelled renders for the judge and the key-point finder, plain and as the autoencoder returns them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL
from PIL import Image
from tqdm import tqdm

from mixshow.puppets.backgrounds import BACKGROUNDS
from mixshow.puppets.cast import CAST, member, near_miss
from mixshow.puppets.drawing import Look
from mixshow.puppets.judge import NOBODY
from mixshow.puppets.training import autoencoder
from mixshow.puppets.training.loop import device
from mixshow.puppets.world import SQUARE, WIDE, Scene, sample_look, sample_scene

SEED = 404
HELD_OUT = 10_000_000  # scene numbers from here on are never trained on
_BATCH = 32
_EMPTY = 0.06  # share of scenes without puppets
_SORTS = ("member", "near_miss", "mixture", "ordinary")
_SORT_WEIGHTS = (0.36, 0.16, 0.12, 0.36)


@dataclass
class Sample:
    """A picture with its scene, who each puppet is, and how it was drawn (one of ``_SORTS``)."""

    picture: Image.Image
    scene: Scene
    identities: list[str]
    sorts: list[str]


def sample_character(rng: np.random.Generator) -> tuple[Look, str, str]:
    """A look, whose it is ("none" unless exactly a cast member's) and the sort it is of.

    Mixtures carry the special features of one member on the body of another puppet. They are what leaking
    attributes look like, and must not count as that member.
    """
    sort = str(rng.choice(_SORTS, p=_SORT_WEIGHTS))
    name = str(rng.choice(list(CAST)))
    if sort == "member":
        return member(name), name, sort
    if sort == "near_miss":
        return near_miss(name), NOBODY, sort
    look = sample_look(rng)
    if sort == "mixture":
        others = [other for other in CAST if other != name]
        look = near_miss(str(rng.choice(others))) if rng.random() < 0.5 else look
        look = dataclasses.replace(look, extras=member(name).extras)
    return look, NOBODY, sort


def labelled_scene(index: int) -> tuple[Scene, list[str], list[str]]:
    """Scene ``index`` (not yet rendered), its identities and sorts: mostly one puppet, else a wide group."""
    rng = np.random.default_rng([SEED, index, 5])
    if rng.random() < _EMPTY:
        return Scene(SQUARE, str(rng.choice(BACKGROUNDS)), [], (SEED, index)), [], []
    wide = index % 4 == 3
    characters = [sample_character(rng) for _ in range(int(rng.integers(2, 6)) if wide else 1)]
    looks, identities, sorts = (list(column) for column in zip(*characters, strict=True))
    return sample_scene(SEED, index, WIDE if wide else SQUARE, looks=looks), identities, sorts


def make_samples(folder: Path, indices: range, decoded: float) -> list[Sample]:
    """Render the scenes; the share ``decoded`` of them is passed through the autoencoder."""
    model = autoencoder.load(folder).to(device())
    waiting: dict[tuple[int, int], list[Sample]] = {SQUARE: [], WIDE: []}
    samples = []
    for index in tqdm(indices, "labelled renders", mininterval=5):
        scene, identities, sorts = labelled_scene(index)
        sample = Sample(scene.render(), scene, identities, sorts)
        samples.append(sample)
        if np.random.default_rng([SEED, index, 6]).random() < decoded:
            waiting[scene.size].append(sample)
    for group in waiting.values():
        for start in tqdm(range(0, len(group), _BATCH), "through the autoencoder", mininterval=5):
            _replace(model, group[start : start + _BATCH])
    return samples


def _replace(model: AutoencoderKL, samples: list[Sample]) -> None:
    pictures = autoencoder.reconstruct(model, [sample.picture for sample in samples])
    for sample, picture in zip(samples, pictures, strict=True):
        sample.picture = picture
