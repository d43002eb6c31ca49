"""Training pictures as users have them: found in folders, checked together, read upright and in colour."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from mixshow.core.errors import MixshowError
from mixshow.edlora.captions import PLACE_HOLDER, names_concept, read_caption

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclasses.dataclass(frozen=True)
class Picture:
    """One training picture: its file, its mask's file and its caption (`<TOK>` not yet replaced)."""

    path: Path
    mask: Path | None
    caption: str


def find_pictures(
    images: Path, *, masks: Path | None, captions: Path | None, prompt: str, tokens: Sequence[str]
) -> tuple[list[Picture], list[str]]:
    """All pictures of a folder in the order of their names, and everything that is wrong with them.

    Args:
        images: a folder that exists, as do `masks` and `captions`.
        masks: folder with a mask of the same stem for each picture; None: no masks.
        captions: folder with `<stem>.txt` for each picture; None: `prompt` is every picture's caption.
        tokens: concept tokens that captions must name, directly or as `<TOK>`.

    Returns:
        `(pictures, problems)`; the pictures are complete only when there are no problems.
    """
    problems = []
    if captions is None and not names_concept(prompt, tokens):
        problems.append(f"data.prompt: expected {PLACE_HOLDER} or {' '.join(tokens)} in it, found '{prompt}'")
    files = _image_files(images)
    if not files:
        return [], [*problems, f"data.images: no pictures ({', '.join(SUFFIXES)}) in {images}"]
    mask_files = {} if masks is None else {path.stem: path for path in _image_files(masks)}
    pictures = []
    for path in files:
        mask = mask_files.get(path.stem)
        problems += _image_problems(path, mask, masks)
        caption = prompt
        if captions is not None:
            try:
                caption = _caption(captions / f"{path.stem}.txt", tokens)
            except MixshowError as error:
                problems.append(str(error))
        pictures.append(Picture(path, mask, caption))
    return pictures, problems


def open_picture(path: Path, mode: str = "RGB") -> Image.Image:
    """A picture, turned upright as its EXIF says, transparency on white.

    Raises:
        MixshowError: no readable picture.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if mode == "RGB" and picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return picture.convert(mode)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MixshowError(f"{path}: expected a picture, cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    text = str(error)
    return "not a picture of a known kind" if text.startswith("cannot identify") else text


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def _caption(path: Path, tokens: Sequence[str]) -> str:
    if not path.is_file():
        raise MixshowError(
            f"{path}: no such caption; write one line with {PLACE_HOLDER} in it, or leave data.captions out"
        )
    caption = read_caption(path)
    if not names_concept(caption, tokens):
        raise MixshowError(
            f"{path}: caption without the concept; expected {PLACE_HOLDER} or {' '.join(tokens)} in '{caption}'"
        )
    return caption


def _image_problems(path: Path, mask: Path | None, masks: Path | None) -> list[str]:
    try:
        size = open_picture(path).size
        if masks is None:
            return []
        if mask is None:
            return [f"{path}: no mask {path.stem}.png in {masks}"]
        mask_size = open_picture(mask, "L").size
    except MixshowError as error:
        return [str(error)]
    if size != mask_size:
        return [f"{mask}: expected the size of its picture, {size[0]}x{size[1]}, found {mask_size[0]}x{mask_size[1]}"]
    return []
