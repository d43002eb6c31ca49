"""Where the demo's characters stand: random skeletons of the puppet world with a box around each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mixshow.config.load import build
from mixshow.config.scene import SceneOptions
from mixshow.edlora.concept import Concept
from mixshow.puppets.backgrounds import BACKGROUNDS, PLACES
from mixshow.puppets.cast import member
from mixshow.puppets.world import WIDE, sample_scene
from mixshow.recipes.demo_options import STEPS
from mixshow.sampling.people_boxes import boxes_around

_SEED = 60_001
# Regions want more guidance than single characters; and the pose is settled early, while an adapter that acts to the
# end draws the base's faces and clothes over a character's (docs/log.md).
_GUIDANCE, _POSED, _DETAIL_GUIDANCE = 5.0, 0.3, 4.0


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
        scenes.append(StagedScene(f"scene_{i:02d}", background, order, tuple(boxes_around(people, WIDE)), people))
    return scenes


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
            "detail": {"guidance": _DETAIL_GUIDANCE},  # three stand close together in a small picture
        },
        scene.name,
    )
