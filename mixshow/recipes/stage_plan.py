"""Where the demo's characters stand: random skeletons of the puppet world with a box around each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from mixshow.config.load import build
from mixshow.config.scene import SceneOptions
from mixshow.edlora.concept import Concept
from mixshow.puppets.backgrounds import BACKGROUNDS, PLACES
from mixshow.puppets.cast import member
from mixshow.puppets.world import WIDE, sample_scene
from mixshow.recipes.demo_options import STEPS

# Room around a skeleton, in parts of its height: wings and capes are wider than the key points of hands and feet, and
# above the nose there are hair and hats.
_SIDES, _ABOVE, _BELOW = 0.17, 0.42, 0.08
_SEED = 60_001
# Regions want more guidance than single characters; and the pose is settled early, while an adapter that acts to the
# end draws the base's faces and clothes over a character's (docs/log.md).
_GUIDANCE, _POSED = 5.0, 0.3


@dataclasses.dataclass(frozen=True)
class StagedScene:
    """One scene of the demo.

    Attributes:
        cast: names from left to right.
        boxes: `(left, top, right, bottom)` in pixels, in the same order.
        people: `(18, 3)` key points in pixels.
    """

    name: str
    background: str
    cast: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    people: tuple[np.ndarray, ...]


def stage_scenes(names: Sequence[str], count: int, *, seed: int = _SEED) -> list[StagedScene]:
    """Scenes with all the characters, in turning order, places and poses."""
    scenes = []
    for i in range(count):
        order = tuple(np.roll(names, i))
        background = BACKGROUNDS[i % len(BACKGROUNDS)]
        drawn = sample_scene(seed, i, WIDE, looks=[member(name) for name in order], background=background)
        people = tuple(drawn.people)
        scenes.append(StagedScene(f"scene_{i:02d}", background, order, boxes_around(people, WIDE), people))
    return scenes


def boxes_around(people: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[tuple[int, int, int, int], ...]:
    """A box around each skeleton with room for body and hat; neighbours' boxes end half-way between their necks.

    Args:
        people: `(18, 3)` key points each, from left to right.
        size: (width, height) of the picture.
    """
    necks = [float(points[1, 0]) for points in people]
    borders = [0.0, *((a + b) / 2 for a, b in pairwise(necks)), float(size[0])]
    boxes = []
    for i, points in enumerate(people):
        x, y = points[:, 0], points[:, 1]
        height = float(y.max() - y.min())
        left = max(borders[i], x.min() - _SIDES * height)
        right = min(borders[i + 1], x.max() + _SIDES * height)
        top, bottom = max(0.0, y.min() - _ABOVE * height), min(float(size[1]), y.max() + _BELOW * height)
        boxes.append((int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))))
    return tuple(boxes)


def scene_options(
    scene: StagedScene, concepts: Mapping[str, Concept], *, model: Path, output: Path, seeds: Sequence[int]
) -> SceneOptions:
    """The scene as options of `mixshow compose`."""
    place = PLACES[scene.background]
    return build(
        SceneOptions,
        {
            "model": str(model),
            "output": str(output),
            "size": list(WIDE),
            "prompt": f"a photo of three puppets, {place}",
            "pose": {
                "people": [points.tolist() for points in scene.people],
                "adapter": "puppets",
                "span": [0.0, _POSED],
            },
            "regions": [
                {"box": list(box), "prompt": f"a photo of {concepts[name].text}, {place}"}
                for name, box in zip(scene.cast, scene.boxes)
            ],
            "seeds": list(seeds),
            "batch_size": len(seeds),
            "guidance": _GUIDANCE,
            "steps": STEPS,
        },
        scene.name,
    )
