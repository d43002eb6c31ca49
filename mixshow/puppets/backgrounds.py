"""Ten places, each made of a few large flat shapes and named by one word."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mixshow.puppets.canvas import Canvas
from mixshow.puppets.palette import Colour, jitter

Painter = Callable[[Canvas, np.random.Generator], None]

PLACES: dict[str, str] = {
    "beach": "at the beach",
    "forest": "in the forest",
    "city": "in the city",
    "night": "at night",
    "snow": "in the snow",
    "desert": "in the desert",
    "room": "in a room",
    "stage": "on a stage",
    "meadow": "in a meadow",
    "sea": "in the sea",
}
BACKGROUNDS = tuple(PLACES)


def place_named(prompt: str) -> str:
    """The place that a prompt names."""
    return next(place for place, words in PLACES.items() if words in prompt)


def paint_background(name: str, size: tuple[int, int], rng: np.random.Generator) -> Canvas:
    """A canvas of ``size`` (width, height) showing the place."""
    canvas = Canvas(size, (128, 128, 128))
    _PAINTERS[name](canvas, rng)
    return canvas


def _horizon(canvas: Canvas, rng: np.random.Generator, low: float = 0.55, high: float = 0.66) -> float:
    return canvas.size[1] * rng.uniform(low, high)


def _ground(canvas: Canvas, rng: np.random.Generator, horizon: float, colour: Colour) -> None:
    canvas.rectangle(0, horizon, canvas.size[0], canvas.size[1], jitter(colour, rng))


def _sky(canvas: Canvas, rng: np.random.Generator, horizon: float, top: Colour, bottom: Colour) -> None:
    canvas.gradient(0, horizon, jitter(top, rng), jitter(bottom, rng))


def _spread(canvas: Canvas, rng: np.random.Generator, gap: float) -> list[float]:
    """Positions across the picture about ``gap`` pixels apart."""
    start = rng.uniform(-gap / 2, gap / 2)
    return [start + gap * i + rng.uniform(-gap / 6, gap / 6) for i in range(int(canvas.size[0] / gap) + 2)]


def _beach(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = _horizon(canvas, rng, 0.40, 0.48)
    shore = horizon + canvas.size[1] * rng.uniform(0.16, 0.22)
    _sky(canvas, rng, horizon, (120, 190, 240), (190, 225, 245))
    _ground(canvas, rng, horizon, (40, 140, 200))
    _ground(canvas, rng, shore, (238, 214, 150))


def _forest(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = _horizon(canvas, rng, 0.66, 0.74)
    _sky(canvas, rng, horizon, (84, 132, 96), (112, 158, 116))
    for x in _spread(canvas, rng, 44):
        top, half = rng.uniform(-10, 16), rng.uniform(20, 26)
        canvas.rectangle(x - 4, horizon - 30, x + 4, horizon + 6, jitter((92, 62, 40), rng))
        canvas.polygon([(x, top), (x - half, horizon - 8), (x + half, horizon - 8)], jitter((26, 86, 50), rng))
    _ground(canvas, rng, horizon, (78, 84, 44))


def _city(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = _horizon(canvas, rng, 0.72, 0.78)
    _sky(canvas, rng, horizon, (186, 190, 198), (214, 212, 208))
    for x in _spread(canvas, rng, 36):
        top, half = rng.uniform(8, 54), rng.uniform(13, 17)
        canvas.rectangle(x - half, top, x + half, horizon, jitter((124, 112, 118), rng, 14))
        for row in range(3):
            y = top + 8 + 18 * row
            canvas.rectangle(x - half + 6, y, x + half - 6, y + 8, jitter((226, 214, 150), rng))
    _ground(canvas, rng, horizon, (88, 90, 96))


def _night(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = _horizon(canvas, rng, 0.70, 0.76)
    _sky(canvas, rng, horizon, (28, 32, 92), (58, 58, 130))
    for x in _spread(canvas, rng, 30):
        canvas.circle((x, rng.uniform(8, 0.5 * canvas.size[1])), 2.2, (226, 226, 190))
    canvas.circle((rng.uniform(0.1, 0.9) * canvas.size[0], rng.uniform(16, 30)), 12, jitter((246, 240, 196), rng))
    _ground(canvas, rng, horizon, (38, 54, 76))


def _snow(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = _horizon(canvas, rng)
    _sky(canvas, rng, horizon, (150, 182, 214), (196, 214, 232))
    for x in _spread(canvas, rng, 70):
        canvas.ellipse((x, horizon + 6), (46, rng.uniform(20, 34)), jitter((214, 226, 240), rng, 5))
    _ground(canvas, rng, horizon + 6, (230, 238, 248))


def _desert(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = _horizon(canvas, rng)
    _sky(canvas, rng, horizon, (244, 150, 84), (250, 204, 134))
    for x in _spread(canvas, rng, 90):
        canvas.ellipse((x, horizon + 10), (60, rng.uniform(20, 34)), jitter((204, 132, 66), rng))
    _ground(canvas, rng, horizon + 8, (222, 162, 86))


def _room(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = _horizon(canvas, rng, 0.70, 0.78)
    canvas.rectangle(0, 0, canvas.size[0], horizon, jitter((232, 206, 190), rng))
    for x in _spread(canvas, rng, 96):
        canvas.rectangle(x - 19, 16, x + 19, 56, jitter((150, 96, 62), rng))
        canvas.rectangle(x - 14, 21, x + 14, 51, jitter((168, 214, 238), rng))
    _ground(canvas, rng, horizon, (160, 104, 66))


def _stage(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = _horizon(canvas, rng, 0.74, 0.80)
    dark, light = jitter((112, 16, 36), rng), jitter((152, 26, 48), rng)
    canvas.rectangle(0, 0, canvas.size[0], horizon, dark)
    for x in _spread(canvas, rng, 26):
        canvas.rectangle(x - 6, 0, x + 6, horizon, light)
    canvas.rectangle(0, 0, canvas.size[0], 9, jitter((218, 174, 70), rng))
    _ground(canvas, rng, horizon, (198, 148, 92))


def _meadow(canvas: Canvas, rng: np.random.Generator) -> None:
    horizon = _horizon(canvas, rng)
    _sky(canvas, rng, horizon, (96, 176, 246), (172, 218, 250))
    canvas.circle((rng.uniform(0.1, 0.9) * canvas.size[0], rng.uniform(14, 26)), 11, jitter((255, 232, 96), rng))
    for x in _spread(canvas, rng, 80):
        canvas.ellipse((x, horizon + 8), (58, rng.uniform(18, 28)), jitter((112, 188, 76), rng))
    _ground(canvas, rng, horizon + 6, (134, 206, 84))


def _sea(canvas: Canvas, rng: np.random.Generator) -> None:
    height = canvas.size[1]
    canvas.gradient(0, height, jitter((56, 190, 196), rng), jitter((14, 96, 122), rng))
    for x in _spread(canvas, rng, 34):
        canvas.circle((x, rng.uniform(10, height - 20)), rng.uniform(4, 7), jitter((142, 220, 222), rng))
    for x in _spread(canvas, rng, 60):
        canvas.ellipse((x, height), (38, 12), jitter((184, 170, 112), rng))


_PAINTERS: dict[str, Painter] = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "night": _night,
    "snow": _snow,
    "desert": _desert,
    "room": _room,
    "stage": _stage,
    "meadow": _meadow,
    "sea": _sea,
}
