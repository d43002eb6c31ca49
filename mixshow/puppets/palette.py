"""The words of the puppet world and the colours they stand for (RGB, 0 to 255)."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]

KINDS = ("boy", "girl", "bear", "robot", "alien")
POSES = ("standing", "waving", "walking", "jumping", "free")

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 40),
    "orange": (245, 136, 32),
    "yellow": (250, 214, 52),
    "green": (48, 160, 68),
    "blue": (44, 88, 214),
    "purple": (134, 60, 176),
    "pink": (245, 126, 184),
    "white": (242, 242, 238),
    "black": (34, 34, 40),
}
HAIRS = ("black", "yellow", "red", "white", "blue", "pink")
SHIRTS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
TROUSERS = ("red", "yellow", "green", "blue", "white", "black")

SKINS: dict[str, Colour] = {
    "light": (250, 214, 184),
    "tan": (222, 170, 124),
    "brown": (156, 102, 68),
    "dark": (102, 66, 48),
    "fur": (140, 90, 52),
    "steel": (162, 168, 178),
    "lime": (126, 208, 112),
}
SKINS_OF_KIND: dict[str, tuple[str, ...]] = {
    "boy": ("light", "tan", "brown", "dark"),
    "girl": ("light", "tan", "brown", "dark"),
    "bear": ("fur",),
    "robot": ("steel",),
    "alien": ("lime",),
}


def jitter(colour: Colour, rng: np.random.Generator, amount: int = 9) -> Colour:
    """The colour, each channel moved by at most ``amount``."""
    moved = np.clip(np.asarray(colour) + rng.integers(-amount, amount + 1, 3), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


def shade(colour: Colour, factor: float) -> Colour:
    """The colour darkened (factor < 1) or lightened towards white (factor > 1)."""
    values = np.asarray(colour, dtype=float)
    values = values * factor if factor <= 1 else 255 - (255 - values) * (2 - factor)
    red, green, blue = np.clip(values, 0, 255).astype(int).tolist()
    return red, green, blue
