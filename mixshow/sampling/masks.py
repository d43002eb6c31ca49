"""Mask pictures: grey ones of one area, and colour-coded ones of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from mixshow.core.errors import MixshowError
from mixshow.sampling.areas import Mask

Colour = tuple[int, int, int]
_TOLERANCE = 32  # by which a channel may differ: painted borders are blurred, and JPEGs are never exact
_LISTED = 6


def mask_of(picture: Image.Image) -> Mask:
    """The area of a grey picture: white inside, black outside, grey by its share.

    Raises:
        MixshowError: nothing in it is brighter than black.
    """
    values = torch.from_numpy(np.asarray(grey(picture), dtype=np.float64) / 255)
    mask = Mask(values)
    if problem := mask.problem(picture.size):
        raise MixshowError(problem)
    return mask


def grey(picture: Image.Image) -> Image.Image:
    """A mask picture of any mode in 8 bits of grey; what is transparent is black."""
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        return Image.fromarray((values * 255 / (65535 if values.max() > 255 else 255)).round().astype(np.uint8))
    if "transparency" in picture.info or picture.mode.endswith("A"):
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture).convert("L")
    return picture.convert("L")


def coded_masks(picture: Image.Image, colours: Sequence[Colour]) -> list[Image.Image]:
    """Black and white masks of the places that have each colour in a colour-coded picture.

    A pixel belongs to the nearest of the colours, unless it is like none of them.

    Raises:
        MixshowError: a colour that the picture does not have; names the ones it has most of.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.int16)
    away = np.stack([np.abs(pixels - np.array(colour, dtype=np.int16)).max(-1) for colour in colours])
    nearest = np.where(away.min(0) <= _TOLERANCE, away.argmin(0), -1)
    for i, colour in enumerate(colours):
        if not (nearest == i).any():
            raise MixshowError(f"no pixel has the colour {_named(colour)}; it has most of {_main_colours(pixels)}")
    return [Image.fromarray((nearest == i).astype(np.uint8) * 255) for i in range(len(colours))]


def _main_colours(pixels: np.ndarray) -> str:
    found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    most = found[np.argsort(-counts, kind="stable")[:_LISTED]]
    return ", ".join(_named(tuple(colour)) for colour in most.tolist())


def _named(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)
