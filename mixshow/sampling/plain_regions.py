"""Regions from plain values, for programs that have no options file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixshow.core.errors import MixshowError
from mixshow.models import Base
from mixshow.sampling.areas import Polygon
from mixshow.sampling.masks import mask_of
from mixshow.sampling.regions import Area, Edges, PixelBox, Region

_AREAS = ("area", "box", "polygon", "mask")


def region_of(entry: Region | Mapping[str, Any], size: tuple[int, int], negative: str) -> Region:
    """A region of plain values.

    Args:
        entry: a `Region`; or a mapping with `prompt`, one of `box` and `polygon` (numbers as in scenes), `mask` (a
            picture) and `area`, and any other field of `Region`.
        size: (width, height) of the picture in pixels.
        negative: the negative prompt of one that has none of its own.

    Raises:
        MixshowError: not one of the areas, no prompt, or something that is no field.
    """
    if isinstance(entry, Region):
        return entry
    given = [name for name in _AREAS if name in entry]
    if len(given) != 1:
        raise MixshowError(f"regions: expected one of {', '.join(_AREAS)} for each, found {given or 'none'}")
    value = entry[given[0]]
    area: Area
    if given[0] == "box":
        area = PixelBox.from_numbers(value, size)
    elif given[0] == "polygon":
        area = Polygon.from_numbers(value, size)
    else:
        area = mask_of(value) if given[0] == "mask" else value
    try:
        rest = {name: value for name, value in entry.items() if name not in _AREAS}
        return Region(area, **{"negative_prompt": negative, **rest})
    except TypeError as error:
        raise MixshowError(
            f"regions: expected a prompt and fields of Region, found {sorted(entry)} ({error})"
        ) from error


def edges_of(edges: Edges | str | None, regions: Sequence[Region]) -> Edges:
    """What was asked for; None: hard when every region is a box."""
    if edges is not None:
        return Edges(edges)
    return Edges.HARD if all(isinstance(region.area, PixelBox) for region in regions) else Edges.SOFT


def check_regions(base: Base, regions: Sequence[Region], size: tuple[int, int], prompts: Sequence[str]) -> None:
    """Whether a base knows the tokens of all prompts, and areas lie in the picture.

    Raises:
        MixshowError: the first of what does not fit.
    """
    own = [text for region in regions for text in (region.prompt, region.negative_prompt)]
    vocabulary = base.vocabulary
    for word in (word for text in (*prompts, *own) for word in vocabulary.unknown_in(text)):
        known = ", ".join(vocabulary.tokens) or "none"
        raise MixshowError(f"{word} is no concept token of this model; known: {known}")
    for i, region in enumerate(regions):
        if problem := region.area.problem(size):
            raise MixshowError(f"regions[{i}]: {problem}")
        if region.seed_offset:
            raise MixshowError(
                f"regions[{i}].seed_offset: expected none here, where noise comes from a generator; found "
                f"{region.seed_offset}; give latents, or take mixshow compose"
            )
        if region.condition_weights:
            raise MixshowError(
                f"regions[{i}].condition_weights: expected none, conditions count everywhere here; see mixshow compose"
            )
