"""The puppet world: scenes that are a pure function of a seed, rendered with masks, boxes and key points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mixshow.puppets.backgrounds import BACKGROUNDS, paint_background
from mixshow.puppets.drawing import Body, Look, draw_body, make_body
from mixshow.puppets.palette import HAIRS, KINDS, POSES, SHIRTS, SKINS_OF_KIND, TROUSERS
from mixshow.puppets.skeleton import build_skeleton, sample_pose

WORLD_VERSION = 1
HEIGHT = 128
SQUARE = (128, 128)  # (width, height)
WIDE = (256, 128)
_POSE_WEIGHTS = (0.16, 0.16, 0.16, 0.12, 0.40)
_HEIGHTS_OF_COUNT = {1: (80, 118), 2: (78, 108), 3: (78, 108), 4: (76, 100), 5: (75, 92)}


@dataclass
class Puppet:
    """One puppet of a scene. ``mask`` (L, white = puppet) and ``box`` are filled in by rendering."""

    look: Look
    pose: str
    height: float
    keypoints: np.ndarray  # (18, 3): x, y in pixels, visible
    body: Body
    mask: Image.Image | None = None
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom in pixels


@dataclass
class Scene:
    """A place with puppets from left to right; ``size`` is (width, height) in pixels."""

    size: tuple[int, int]
    background: str
    puppets: list[Puppet]
    seed: tuple[int, ...]
    picture: Image.Image | None = field(default=None, repr=False)

    def render(self) -> Image.Image:
        """Draw the scene once; later calls return the same RGB picture."""
        if self.picture is None:
            canvas = paint_background(self.background, self.size, np.random.default_rng([*self.seed, 1]))
            for puppet in self.puppets:
                layer = draw_body(puppet.body, self.size)
                canvas.paste(layer)
                puppet.mask = layer.image.getchannel("A").resize(self.size, Image.Resampling.BOX)
                puppet.box = puppet.mask.point(lambda value: 255 * (value > 127)).getbbox()
            self.picture = canvas.finish()
        return self.picture

    @property
    def people(self) -> list[np.ndarray]:
        """The skeletons, as the pose drawer takes them."""
        return [puppet.keypoints for puppet in self.puppets]


def sample_look(rng: np.random.Generator) -> Look:
    """A random inhabitant of the base world, without special features."""
    kind = str(rng.choice(KINDS))
    return Look(
        kind,
        str(rng.choice(HAIRS)),
        str(rng.choice(SHIRTS)),
        str(rng.choice(TROUSERS)),
        str(rng.choice(SKINS_OF_KIND[kind])),
    )


def sample_scene(
    seed: int,
    index: int,
    size: tuple[int, int] = SQUARE,
    count: int | None = None,
    looks: Sequence[Look] | None = None,
    background: str | None = None,
) -> Scene:
    """Scene ``index`` of the data set ``seed``; looks (left to right), count and background can be fixed."""
    rng = np.random.default_rng([seed, index])
    if looks is not None:
        count = len(looks)
    elif count is None:
        count = int(rng.integers(1, 3 if size[0] <= HEIGHT else 6))
    chosen = str(rng.choice(BACKGROUNDS))
    background = background or chosen
    puppets = []
    headroom = 0.22 if looks is not None and any(look.extras for look in looks) else 0.0
    gap = size[0] / count
    for place in range(count):
        look = looks[place] if looks is not None else sample_look(rng)
        pose = sample_pose(str(rng.choice(POSES, p=_POSE_WEIGHTS)), rng)
        low, high = _HEIGHTS_OF_COUNT[count]
        height = float(rng.uniform(low, min(high, 0.94 * size[1] / (1 + headroom))))
        freedom = max(0.0, gap / 2 - 0.36 * height) if count == 1 else gap * 0.1
        hip_x = gap * (place + 0.5) + float(rng.uniform(-freedom, freedom))
        slack = size[1] - height * (1 + headroom) - 4
        floor_y = size[1] - 2 - float(rng.uniform(0, max(0.0, min(slack, 10.0))))
        keypoints = build_skeleton(pose, height, hip_x, floor_y, rng)
        inside = (
            (keypoints[:, 0] >= 0) & (keypoints[:, 0] < size[0]) & (keypoints[:, 1] >= 0) & (keypoints[:, 1] < size[1])
        )
        keypoints[:, 2] = inside
        puppets.append(Puppet(look, pose.name, height, keypoints, make_body(look, keypoints, height, rng)))
    return Scene(size, background, puppets, (seed, index))
