"""From a picture of any size to a square canvas: random crops, placement and flips.

Every transform computes one box of the picture and one place on the canvas, so that a picture is resampled once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the picture


@dataclasses.dataclass(frozen=True)
class Placement:
    """A box of the picture, its size on the canvas and its corner there, in pixels."""

    box: Box
    size: tuple[int, int]
    corner: tuple[int, int]
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class TransformOptions:
    """
    Attributes:
        size: side of the canvas in pixels.
        crop_probability: how often a picture is cropped rather than fitted.
        scale: range of the random scale of `fill_mask`.
    """

    size: int
    crop_probability: float = 0.5
    scale: tuple[float, float] = (0.7, 1.0)


def _whole(width: int, height: int) -> Box:
    return (0.0, 0.0, float(width), float(height))


def _random_square(width: int, height: int, rng: np.random.Generator) -> Box:
    side = min(width, height)
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    return (left, top, left + side, top + side)


def _placed(box: Box, side: float, size: int, rng: np.random.Generator) -> Placement:
    """The box with its long side brought to `side`, at a random position of the canvas."""
    scale = side / max(box[2] - box[0], box[3] - box[1])
    width, height = (max(1, round(scale * length)) for length in (box[2] - box[0], box[3] - box[1]))
    corner = [int(rng.integers(min(0, room), max(0, room) + 1)) for room in (size - width, size - height)]
    return Placement(box, (width, height), (corner[0], corner[1]))


def human_crop(width: int, height: int, options: TransformOptions, rng: np.random.Generator) -> Placement:
    """Portraits keep their top, landscapes a random square, or all is kept (Mix-of-Show `HumanResizeCropFinalV3`)."""
    box = _whole(width, height)
    if rng.random() < options.crop_probability:
        if height > width:
            box = (0.0, 0.0, float(width), width + rng.uniform(0, height - width))
        elif width > height:
            box = _random_square(width, height, rng)
    return _placed(box, options.size, options.size, rng)


def fill_mask(width: int, height: int, options: TransformOptions, rng: np.random.Generator) -> Placement:
    """A random square or the whole picture, scaled at random (Mix-of-Show `ResizeFillMaskNew`)."""
    cropped = rng.random() < options.crop_probability
    box = _random_square(width, height, rng) if cropped else _whole(width, height)
    return _placed(box, options.size * rng.uniform(*options.scale), options.size, rng)


def centre_crop(width: int, height: int, options: TransformOptions, rng: np.random.Generator) -> Placement:
    """The largest square in the middle; nothing random."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return Placement((left, top, left + side, top + side), (options.size, options.size), (0, 0))


Transform = Callable[[int, int, TransformOptions, np.random.Generator], Placement]
TRANSFORMS: dict[str, Transform] = {
    "human_crop": human_crop,
    "fill_mask": fill_mask,
    "centre_crop": centre_crop,
}


def on_canvas(picture: Image.Image, placement: Placement, size: int) -> Image.Image:
    """The placed picture on a black canvas; masks (mode `L`) are resampled the same way."""
    canvas = Image.new(picture.mode, (size, size))
    part = picture.resize(placement.size, Image.Resampling.BICUBIC, box=placement.box, reducing_gap=2.0)
    canvas.paste(part, placement.corner)
    return canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placement.flip else canvas


def valid_area(placement: Placement, size: int) -> Image.Image:
    """White where the picture lies on the canvas."""
    canvas = Image.new("L", (size, size))
    (left, top), (width, height) = placement.corner, placement.size
    canvas.paste(255, (left, top, left + width, top + height))
    return canvas.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if placement.flip else canvas


def latent_mask(mask: Image.Image, factor: int) -> np.ndarray:
    """A mask at latent size: 1 where at least half of the `factor` x `factor` pixels are white. `[h, w]` float32."""
    return (np.asarray(mask.reduce(factor), dtype=np.float32) >= 127.5).astype(np.float32)
