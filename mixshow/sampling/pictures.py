"""Pictures as files: labelled grids, and metadata from which a picture can be made again."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mixshow.core.errors import MixshowError
from mixshow.core.files import written_atomically
from mixshow.sampling.openpose import read_picture

METADATA_KEY = "mixshow"
_GAP = 4
_PAPER, _INK = "white", "black"


def picture_grid(images: Sequence[Image.Image], columns: int, labels: Sequence[str] | None = None) -> Image.Image:
    """Pictures side by side, row by row, on white, with a label above each.

    Args:
        images: at least one; smaller ones are not enlarged.
        columns: pictures per row.
        labels: one per picture; cut where they are wider than the picture.
    """
    font = ImageFont.load_default()
    label_height = _text_height(font) if labels else 0
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    cell_width, cell_height = width + _GAP, height + label_height + _GAP
    grid = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(grid)
    for i, image in enumerate(images):
        left, top = _GAP + i % columns * cell_width, _GAP + i // columns * cell_height
        if labels:
            draw.text((left, top), _shortened(labels[i], width, font), _INK, font)
        grid.paste(image, (left, top + label_height))
    return grid


def save_picture(
    image: Image.Image, path: Path | str, about: Mapping[str, Any] | None = None, *, key: str = METADATA_KEY
) -> None:
    """Write a PNG atomically.

    Args:
        about: plain JSON values that are kept in the PNG's metadata.
        key: what they are kept under.

    Raises:
        MixshowError: the disk is full or the folder cannot be written.
    """
    metadata = PngInfo()
    if about is not None:
        metadata.add_itxt(key, json.dumps(about, ensure_ascii=False))
    with written_atomically(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=metadata)


def read_about(path: Path | str) -> dict[str, Any]:
    """What `save_picture` kept in a picture.

    Raises:
        MixshowError: no picture, or one without it.
    """
    text = read_picture(path).info.get(METADATA_KEY)
    if text is None:
        raise MixshowError(
            f"{path}: expected a picture that mixshow made, found no scene in its metadata; "
            "editors and web sites often strip it"
        )
    try:
        about = json.loads(text)
    except json.JSONDecodeError as error:
        raise MixshowError(f"{path}: the scene in its metadata is damaged ({error})") from error
    if not isinstance(about, dict):
        raise MixshowError(f"{path}: expected a mapping in the metadata '{METADATA_KEY}', found something else")
    return about


def encoded_picture(image: Image.Image) -> str:
    """A picture as base64 of a PNG, for options that hold it themselves."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def decoded_picture(text: str) -> Image.Image:
    """The picture of `encoded_picture`.

    Raises:
        MixshowError: the text is something else.
    """
    try:
        return read_picture(io.BytesIO(base64.b64decode(text, validate=True)))
    except (binascii.Error, ValueError) as error:
        raise MixshowError(f"png: expected a PNG picture in base64, found something else ({error})") from error


def _text_height(font: Any) -> int:
    return font.getbbox("Ag")[3] + 2


def _shortened(text: str, width: int, font: Any) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
