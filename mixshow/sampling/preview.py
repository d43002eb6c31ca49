"""A drawing of a scene: its regions' areas and its pose, without making the picture."""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mixshow.sampling.regions import Edges, region_shares
from mixshow.sampling.scene import Scene

_SIDE = 512  # the longer side that small scenes are enlarged to, so that the text has room
_LINE, _GAP = 14, 4
_BACKGROUND, _INK = (40, 40, 40), (255, 255, 255)
_TURN = 0.381966  # golden angle in turns: neighbours get unlike colours, however many there are


def draw_preview(scene: Scene) -> Image.Image:
    """The scene's layout: each region in a colour of its own by the share it has of every pixel, and the pose.

    Below the picture stand the regions' numbers (from 0) with their prompts. Small scenes are enlarged.

    Raises:
        ValueError: the scene has no size.
    """
    if scene.size is None:
        raise ValueError("a scene without a size has no layout")
    scale = max(1, _SIDE // max(scene.size))
    colours = [_colour(i) for i in range(len(scene.regions))]
    shares = region_shares(scene.regions, scene.size[1], scene.size[0], scene.size, Edges.SOFT)
    values = torch.einsum("rhw,rc->hwc", shares, torch.tensor([_BACKGROUND, *colours], dtype=torch.float64))
    pixels = values.round().to(torch.uint8).numpy()
    if scene.pose is not None:
        pose = np.asarray(scene.pose.picture.convert("RGB"))
        pixels = np.where(pose.any(-1, keepdims=True), pose, pixels)
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    _number(picture, shares[1:].numpy(), scale)
    return _with_legend(picture, scene, colours)


def _colour(number: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(number * _TURN % 1, 0.6, 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)


def _number(picture: Image.Image, shares: np.ndarray, scale: int) -> None:
    """Write each region's number at the middle of what it has."""
    draw = ImageDraw.Draw(picture)
    for i, share in enumerate(shares):
        rows, columns = share.sum(1), share.sum(0)
        if share.any():
            y = np.average(np.arange(len(rows)) + 0.5, weights=rows)
            x = np.average(np.arange(len(columns)) + 0.5, weights=columns)
            draw.text((x * scale, y * scale), str(i), _INK, stroke_width=2, stroke_fill=_BACKGROUND, anchor="mm")


def _with_legend(picture: Image.Image, scene: Scene, colours: list[tuple[int, int, int]]) -> Image.Image:
    """The picture above one line for each region, and one for the prompt of the whole."""
    lines = [(_BACKGROUND, scene.prompt), *zip(colours, (region.prompt for region in scene.regions))]
    page = Image.new("RGB", (picture.width, picture.height + _LINE * len(lines) + _GAP), "black")
    page.paste(picture)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    for i, (colour, prompt) in enumerate(lines):
        top = picture.height + _GAP + i * _LINE
        draw.rectangle((_GAP, top, _GAP + _LINE - 4, top + _LINE - 4), fill=colour)
        name = "rest" if i == 0 else str(i - 1)
        draw.text((_GAP + _LINE, top - 1), f"{name}: {prompt}", _INK, font)
    return page
