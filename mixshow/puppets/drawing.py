"""Draws one puppet from its skeleton, on a transparent layer of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mixshow.puppets import features
from mixshow.puppets.canvas import Canvas, Frame, Point
from mixshow.puppets.palette import COLOURS, SKINS, Colour, jitter, shade
from mixshow.puppets.skeleton import HEAD_RADIUS
from mixshow.sampling.joints import INDEX

_DARK: Colour = (36, 30, 34)
_SHOE: Colour = (84, 58, 48)


@dataclass(frozen=True)
class Look:
    """What a puppet looks like, in words; ``extras`` are the special features only cast members have."""

    kind: str
    hair: str
    shirt: str
    trousers: str
    skin: str
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class Body:
    """A look and a skeleton with everything a drawing routine needs."""

    look: Look
    keypoints: np.ndarray
    height: float
    hair: Colour
    shirt: Colour
    trousers: Colour
    skin: Colour
    head: Frame = field(init=False)
    torso: Frame = field(init=False)

    def __post_init__(self) -> None:
        nose, right_ear, left_ear = (np.array(self.joint(name)) for name in ("nose", "right_ear", "left_ear"))
        tilt = float(np.arctan2(*(left_ear - right_ear)[::-1]))
        object.__setattr__(self, "head", Frame(tuple(nose.tolist()), self.height * HEAD_RADIUS, tilt))
        hips = (np.array(self.joint("right_hip")) + np.array(self.joint("left_hip"))) / 2
        neck = np.array(self.joint("neck"))
        lean = float(np.arctan2((neck - hips)[0], (hips - neck)[1]))
        object.__setattr__(self, "torso", Frame(tuple(((hips + neck) / 2).tolist()), self.height, lean))

    def joint(self, name: str) -> Point:
        x, y, _ = self.keypoints[INDEX[name]].tolist()
        return x, y

    def has(self, extra: str) -> bool:
        return extra in self.look.extras


def make_body(look: Look, keypoints: np.ndarray, height: float, rng: np.random.Generator) -> Body:
    """The body with slightly varied colours."""
    hair, shirt, trousers = (jitter(COLOURS[word], rng) for word in (look.hair, look.shirt, look.trousers))
    return Body(look, keypoints, height, hair, shirt, trousers, jitter(SKINS[look.skin], rng))


def draw_body(body: Body, size: tuple[int, int]) -> Canvas:
    """The puppet on a transparent canvas of ``size`` (width, height)."""
    canvas = Canvas(size)
    features.draw_behind(canvas, body)
    if body.look.kind == "girl":
        _long_hair(canvas, body)
    _legs(canvas, body)
    _torso(canvas, body)
    _arms(canvas, body)
    _HEADS[body.look.kind](canvas, body)
    features.draw_on_head(canvas, body)
    return canvas


def torso_outline(body: Body) -> list[Point]:
    return body.torso.shape([(-0.125, -0.135), (0.125, -0.135), (0.145, 0.155), (-0.145, 0.155)])


def _legs(canvas: Canvas, body: Body) -> None:
    for side in ("right", "left"):
        hip, knee, ankle = (body.joint(f"{side}_{part}") for part in ("hip", "knee", "ankle"))
        canvas.limb([hip, knee, ankle], body.height * 0.092, body.trousers)
        outwards = -1 if side == "right" else 1
        shoe = (ankle[0] + outwards * body.height * 0.022, ankle[1] + body.height * 0.004)
        canvas.ellipse(shoe, (body.height * 0.068, body.height * 0.034), _SHOE)
    hips = body.torso.shape([(-0.125, 0.11), (0.125, 0.11), (0.115, 0.19), (-0.115, 0.19)])
    canvas.polygon(hips, body.trousers)


def _torso(canvas: Canvas, body: Body) -> None:
    outline = torso_outline(body)
    canvas.polygon(outline, body.shirt)
    features.draw_on_shirt(canvas, body, outline)


def _arms(canvas: Canvas, body: Body) -> None:
    for side in ("right", "left"):
        shoulder, elbow, wrist = (body.joint(f"{side}_{part}") for part in ("shoulder", "elbow", "wrist"))
        canvas.limb([elbow, wrist], body.height * 0.072, body.skin)
        canvas.circle(wrist, body.height * 0.05, body.skin)
        canvas.limb([shoulder, elbow], body.height * 0.088, shade(body.shirt, 0.9))


def _face(canvas: Canvas, body: Body, mouth_v: float = 0.5) -> None:
    head = body.head
    if body.has("one_eye"):
        features.draw_one_eye(canvas, body)
    else:
        for sign in (-1, 1):
            canvas.polygon(head.oval(sign * 0.38, -0.02, 0.14, 0.19), _DARK)
    canvas.polygon(head.oval(0, mouth_v - 0.1, 0.34, 0.26, 10, 170), (176, 50, 56))


def _cap_of_hair(canvas: Canvas, body: Body, brow: float) -> None:
    """Hair over the top of a round head, down to ``brow`` degrees above the ear line."""
    canvas.polygon(body.head.oval(0, 0, 1.07, 1.07, 180 + brow, 360 - brow), body.hair)


def _boy(canvas: Canvas, body: Body) -> None:
    head = body.head
    for sign in (-1, 1):
        canvas.polygon(head.oval(sign * 0.97, 0.08, 0.2, 0.24), shade(body.skin, 0.92))
    canvas.polygon(head.oval(0, 0, 1, 1), body.skin)
    _cap_of_hair(canvas, body, 16)
    _face(canvas, body)


def _long_hair(canvas: Canvas, body: Body) -> None:
    head = body.head
    canvas.polygon(head.oval(0, -0.05, 1.22, 1.15), body.hair)
    canvas.polygon(head.shape([(-1.22, -0.1), (1.22, -0.1), (1.34, 1.35), (-1.34, 1.35)]), body.hair)


def _girl(canvas: Canvas, body: Body) -> None:
    head = body.head
    canvas.polygon(head.oval(0, 0.05, 0.92, 0.95), body.skin)
    _cap_of_hair(canvas, body, 20)
    for sign in (-1, 1):
        canvas.polygon(
            head.shape([(sign * 1.05, -0.4), (sign * 0.78, -0.4), (sign * 0.86, 0.9), (sign * 1.2, 1)]),
            body.hair,
        )
    _face(canvas, body)


def _bear(canvas: Canvas, body: Body) -> None:
    head = body.head
    if not body.has("long_ears"):
        for sign in (-1, 1):
            canvas.polygon(head.oval(sign * 0.8, -0.72, 0.36, 0.36), shade(body.skin, 0.82))
    canvas.polygon(head.oval(0, 0, 1.08, 0.98), body.skin)
    canvas.polygon(head.oval(0, 0.42, 0.55, 0.42), shade(body.skin, 1.5))
    _face(canvas, body, 0.68)
    canvas.polygon(head.oval(0, 0.24, 0.2, 0.14), _DARK)
    for u, v in ((-0.38, -0.82), (0.38, -0.82), (0, -1.0)):
        canvas.polygon(head.oval(u, v, 0.36, 0.34), body.hair)


def _robot(canvas: Canvas, body: Body) -> None:
    head = body.head
    canvas.polygon(head.shape([(-0.94, -0.86), (0.94, -0.86), (0.94, 0.94), (-0.94, 0.94)]), body.skin)
    canvas.polygon(head.shape([(-0.94, -1.2), (0.94, -1.2), (0.94, -0.58), (-0.94, -0.58)]), body.hair)
    if body.has("one_eye"):
        features.draw_one_eye(canvas, body)
    else:
        for sign in (-1, 1):
            u = sign * 0.42
            canvas.polygon(
                head.shape([(u - 0.24, -0.24), (u + 0.24, -0.24), (u + 0.24, 0.14), (u - 0.24, 0.14)]), _DARK
            )
    canvas.polygon(head.shape([(-0.5, 0.46), (0.5, 0.46), (0.5, 0.68), (-0.5, 0.68)]), (86, 90, 104))


def _alien(canvas: Canvas, body: Body) -> None:
    head = body.head
    canvas.polygon(head.shape([(-0.3, -0.5), (0.3, -0.5), (0.36, -1.5), (-0.36, -1.5)]), body.hair)
    canvas.polygon(head.oval(0, -1.5, 0.36, 0.2), body.hair)
    canvas.polygon(head.oval(0, -0.1, 0.9, 0.92), body.skin)
    canvas.polygon(head.oval(0, 0.3, 0.6, 0.78), body.skin)
    canvas.polygon(head.shape([(-0.28, -1.2), (0.28, -1.2), (0.2, -0.56), (-0.2, -0.56)]), body.hair)
    if body.has("one_eye"):
        features.draw_one_eye(canvas, body)
    else:
        for sign in (-1, 1):
            eye = Frame(head.at(sign * 0.42, 0), head.unit, head.angle + sign * -0.45)
            canvas.polygon(eye.oval(0, 0, 0.34, 0.22), (18, 18, 22))
    canvas.polygon(head.oval(0, 0.66, 0.2, 0.1), (40, 96, 44))


_HEADS = {"boy": _boy, "girl": _girl, "bear": _bear, "robot": _robot, "alien": _alien}
