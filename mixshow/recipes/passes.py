"""The picture that a scene begins from and its second pass: options -> values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from PIL import Image

from mixshow.config.passes import DetailOptions, HiresOptions, ImageOptions
from mixshow.config.region import RegionOptions
from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.core.progress import log
from mixshow.sampling.detail import DetailPass
from mixshow.sampling.hires import SecondPass, Upscale
from mixshow.sampling.openpose import read_picture
from mixshow.sampling.pictures import decoded_picture, encoded_picture
from mixshow.sampling.redo import StartPicture, redone_area
from mixshow.sampling.scene import Scene

Size = tuple[int, int]
_SCALE = 1.5


def second_pass(options: HiresOptions, size: Size, multiple: int | None) -> SecondPass:
    """The second pass over pictures of a size; where a scale is rounded, it is said.

    Args:
        multiple: what sides must be multiples of, in pixels; None: not known, nothing is rounded to it.
    """
    return SecondPass(
        options.size or _enlarged(size, options.scale or _SCALE, multiple or 1),
        options.strength,
        options.steps,
        Upscale(options.upscale),
    )


def _enlarged(size: Size, scale: float, multiple: int) -> Size:
    exact = size[0] * scale, size[1] * scale
    width, height = (max(1, round(side / multiple)) * multiple for side in exact)
    if multiple > 1 and exact != (width, height):
        log.info(
            "hires: %gx%g pixels, rounded to %dx%d: the model's sides are multiples of %d",
            *exact, width, height, multiple,
        )  # fmt: skip
    return width, height


def start_picture(
    options: ImageOptions, scene: Scene, entries: Sequence[RegionOptions], *, rounded: bool
) -> tuple[StartPicture, ImageOptions]:
    """The picture that a scene begins from, and options that hold it without a file.

    It is brought to the scene's size, unless it has that of the second pass: then that alone is made.

    Args:
        entries: the scene's regions as options, which know their concepts' names.
        rounded: the second pass's size is what the model makes. Otherwise a picture of which regions are made again
            is taken to be of that size.

    Raises:
        MixshowError: no such picture or region.
    """
    picture = _picture(options)
    larger = None if scene.second is None else scene.second.size
    if larger is not None and options.redo and not rounded:
        larger = picture.size
    if scene.size is not None and picture.size not in (scene.size, larger):
        found, wanted = (f"{width}x{height}" for width, height in (picture.size, scene.size))
        log.info("%s: %s pixels, stretched over the picture of %s", options.file or "image", found, wanted)
        picture = picture.resize(scene.size)
    redone = None
    if options.redo and larger not in (None, picture.size):
        raise MixshowError(
            f"redo: expected a picture of the second pass's {'x'.join(map(str, larger or ()))} pixels, found "
            f"{picture.width}x{picture.height}; leave out hires"
        )
    if options.redo:
        numbers = [number for name in options.redo for number in region_numbers(name, entries)]
        regions = scene.scaled(picture.size).regions
        redone = redone_area(regions, numbers, picture.size, margin=options.margin, feather=options.feather)
    kept = dataclasses.replace(options, file=None, png=encoded_picture(picture))
    return StartPicture(picture, options.made_part, redone), kept


def _picture(options: ImageOptions) -> Image.Image:
    if options.file is None:
        return decoded_picture(options.png or "").convert("RGB")
    try:
        return read_picture(options.file).convert("RGB")
    except MixshowError as error:
        raise MixshowError(f"file: {error}") from error


def detail_pass(options: DetailOptions, entries: Sequence[RegionOptions], *, guided: bool) -> DetailPass:
    """The pass in which regions are made once more.

    Args:
        guided: the scene has a pose or conditions.

    Raises:
        MixshowError: no such region, or none at all, or nothing to weaken.
    """
    if options.condition_weight != 1 and not guided:
        raise MixshowError(
            "condition_weight: expected a pose or conditions in the scene that it could weaken, found none"
        )
    if not entries:
        raise MixshowError("regions: expected some in the scene to make once more, found none")
    numbers = [number for name in options.regions for number in region_numbers(name, entries, "regions")]
    return DetailPass(
        options.strength,
        options.margin,
        options.padding,
        options.condition_weight,
        options.guidance,
        options.steps,
        tuple(dict.fromkeys(numbers)),
    )


def region_numbers(name: int | str, entries: Sequence[RegionOptions], what: str = "redo") -> list[int]:
    """The numbers, from 0, of the regions that are meant: of one by its number, of all by their concept.

    Args:
        what: the option that means them, for messages.

    Raises:
        MixshowError: no such region; names those that are there.
    """
    if isinstance(name, int) or name.isdecimal():
        if 0 <= int(name) < len(entries):
            return [int(name)]
        raise MixshowError(f"{what}: expected a region from 0 to {len(entries) - 1}, found {name}")
    found = [i for i, entry in enumerate(entries) if entry.concept == name or f"<{name}1>" in entry.prompt]
    if not found:
        known = dict.fromkeys(entry.concept for entry in entries if entry.concept)
        raise MixshowError(
            f"{what}: expected a region's number from 0 to {len(entries) - 1} or its concept, found '{name}'"
            f"{did_you_mean(name, known)}"
        )
    return found
