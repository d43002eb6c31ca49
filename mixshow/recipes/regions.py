"""The regions of a scene's options and the files they name -> regions as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, cast

from PIL import Image, ImageColor

from mixshow.config.region import RegionOptions
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.core.progress import log
from mixshow.sampling.areas import Feathered, Polygon
from mixshow.sampling.cells import parse_cells
from mixshow.sampling.masks import Colour, coded_masks, grey, mask_of
from mixshow.sampling.openpose import read_picture
from mixshow.sampling.pictures import decoded_picture, encoded_picture
from mixshow.sampling.published_regions import parse_regions, read_layout
from mixshow.sampling.regions import Area, Edges, PixelBox, Region, region_shares
from mixshow.sampling.sought import Sought

Size = tuple[int, int]
_CONCEPT = "{concept}"  # in a region's prompts, the place of its concept's tokens
_OWN = "{prompt}"  # in a common prompt, the place of a region's own


def read_regions(
    options: SceneOptions,
    problems: list[str],
    concepts: Mapping[str, str] | None = None,
    unplaced: Collection[int] = (),
) -> tuple[list[Region], SceneOptions]:
    """Read the regions from wherever the options have them.

    Args:
        concepts: the tokens of each concept that the model knows, for `{concept}` in prompts; None: the model is not
            known, concepts are left as their names.
        unplaced: numbers of regions whose boxes stand for others that are not known yet; who lies over whom is not
            asked of them.
        problems: what is wrong is added here; the result must then not be used.

    Returns:
        The regions, and options that hold all of them: they name no files of regions any more.
    """
    if options.size is None:
        return [], options
    try:
        listed = _listed(options, options.size)
    except MixshowError as error:
        problems.append(str(error))
        return [], options
    regions: list[Region] = []
    source = options.region_source
    for i, entry in enumerate(listed):
        try:
            area = _area(entry, options.size)
            problem = area.problem(options.size)
        except MixshowError as error:
            problem = str(error)
        if problem:
            problems.append(f"{source}[{i}].{entry.shape}: {problem}")
            continue
        region = _region(entry, area, options)
        try:
            regions.append(_with_concept(region, entry.concept, concepts))
        except MixshowError as error:
            problems.append(f"{source}[{i}].{error}")
    if len(regions) == len(listed):
        placed = {i: region for i, region in enumerate(regions) if i not in unplaced}
        problems += [f"{source}[{i}]{problem}" for i, problem in _hidden(placed, options.size)]
        _say_overlaps(placed, options.size, source)
    listed = [_without_files(entry, options.size) for entry in listed] if not problems else listed
    return regions, dataclasses.replace(
        options, regions=listed, rewrite=None, layout=None, masks=None, edges=options.edges or _edges(options, listed)
    )


def _listed(options: SceneOptions, size: Size) -> list[RegionOptions]:
    """One entry per region, each with a shape of its own."""
    if options.rewrite:
        return _boxes(parse_regions(options.rewrite, "rewrite"))
    if options.layout_file:
        return _boxes(read_layout(options.layout_file, negative_prompt=options.negative_prompt))
    regions = options.regions
    if options.cells:
        try:
            cells = parse_cells(options.cells)
        except MixshowError as error:
            raise MixshowError(f"layout: {error}") from error
        if len(cells) != len(regions):
            raise MixshowError(
                f"layout: expected as many cells as regions ({len(regions)}), found {len(cells)} in '{options.cells}'"
            )
        boxes = [PixelBox.from_numbers(cell, size).numbers for cell in cells]
        regions = [dataclasses.replace(region, box=box) for region, box in zip(regions, boxes)]
    if options.masks:
        regions = _decoded_colours(regions, options.masks, size)
    return regions


def _boxes(regions: Sequence[Region]) -> list[RegionOptions]:
    return [
        RegionOptions(
            prompt=region.prompt, box=cast(PixelBox, region.area).numbers, negative_prompt=region.negative_prompt
        )
        for region in regions
    ]


def _decoded_colours(regions: Sequence[RegionOptions], path: Path, size: Size) -> list[RegionOptions]:
    """Regions of a colour-coded picture with each its own mask instead."""
    picture = read_picture(path)
    say_size(str(path), picture, size)
    coloured = [i for i, region in enumerate(regions) if region.colour is not None]
    try:
        masks = coded_masks(picture, [_colour(regions[i].colour or "", i) for i in coloured])
    except MixshowError as error:
        raise MixshowError(f"masks: {path}: {error}") from error
    found = list(regions)
    for i, mask in zip(coloured, masks):
        found[i] = dataclasses.replace(regions[i], colour=None, png=encoded_picture(mask))
    return found


def _colour(text: str, region: int) -> Colour:
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise MixshowError(
            f'regions[{region}].colour: expected a colour such as "#ff0000" or red, found "{text}"'
        ) from error


def _area(entry: RegionOptions, size: Size) -> Area:
    area: Area
    if entry.box is not None:
        area = PixelBox.from_numbers(entry.box, size)
    elif entry.polygon is not None:
        area = Polygon.from_numbers(entry.polygon, size)
    elif entry.mask is not None:
        picture = read_picture(entry.mask)
        say_size(str(entry.mask), picture, size)
        try:
            area = mask_of(picture)
        except MixshowError as error:
            raise MixshowError(f"{entry.mask}: {error}") from error
    elif entry.from_ is not None:
        return Sought(entry.threshold, entry.after, _pixels(entry.feather, size))
    else:
        area = mask_of(decoded_picture(entry.png or ""))
    return Feathered(area, _pixels(entry.feather, size)) if entry.feather else area


def _pixels(length: float, size: Size) -> float:
    return length if length >= 1 else length * min(size)


def say_size(name: str, picture: Image.Image, size: Size, what: str = "stretched over") -> None:
    """One line when a picture is of another size than the scene, and what is made of it."""
    if picture.size != size:
        found, wanted = (f"{width}x{height}" for width, height in (picture.size, size))
        log.info("%s: %s pixels, %s the picture of %s", name, found, what, wanted)


def _region(entry: RegionOptions, area: Area, options: SceneOptions) -> Region:
    negative = options.negative_prompt if entry.negative_prompt is None else entry.negative_prompt
    return Region(
        area,
        _with_common(entry.prompt, options.common_prompt),
        with_common_negative(negative, options.common_negative),
        entry.base_ratio,
        priority=entry.priority,
        weight=entry.weight,
        span=(entry.start, entry.end),
        guidance=entry.guidance,
        seed_offset=entry.seed_offset,
        condition_weights=tuple(entry.condition_weights),
    )


def _with_concept(region: Region, name: str | None, concepts: Mapping[str, str] | None) -> Region:
    """The region with a concept's tokens where its prompts have `{concept}`."""
    used = _CONCEPT in region.prompt or _CONCEPT in region.negative_prompt
    if name is None:
        if used:
            raise MixshowError(f"concept: expected the name of a concept for {_CONCEPT} in the prompt, found none")
        return region
    if not used:
        raise MixshowError(f"prompt: expected {_CONCEPT}, where the tokens of '{name}' stand; found none")
    if concepts is not None and name not in concepts:
        raise MixshowError(f"concept: the model knows no '{name}'{did_you_mean(name, concepts) or '; it has none'}")
    tokens = name if concepts is None else concepts[name]
    return dataclasses.replace(
        region,
        prompt=region.prompt.replace(_CONCEPT, tokens),
        negative_prompt=region.negative_prompt.replace(_CONCEPT, tokens),
        tokens=tuple(tokens.split()),
    )


def _with_common(prompt: str, common: str | None) -> str:
    if common and _OWN in common:
        return common.replace(_OWN, prompt)
    return _joined(common, prompt)


def with_common_negative(negative: str, common: str | None) -> str:
    """A negative prompt with what is common to all behind it."""
    return _joined(negative, common)


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _without_files(entry: RegionOptions, size: Size) -> RegionOptions:
    """The same region in pixels, its mask in the options themselves."""
    if entry.box is not None:
        return dataclasses.replace(entry, box=PixelBox.from_numbers(entry.box, size).numbers)
    if entry.mask is not None:
        return dataclasses.replace(entry, mask=None, png=encoded_picture(grey(read_picture(entry.mask))))
    return entry


def _edges(options: SceneOptions, listed: Sequence[RegionOptions]) -> Literal["hard", "soft"]:
    """Plain boxes end as published, other shapes softly: they would have no whole position in coarse layers."""
    plain = not options.cells and all(region.box is not None and not region.feather for region in listed)
    return "hard" if plain else "soft"


def _hidden(regions: Mapping[int, Region], size: Size) -> list[tuple[int, str]]:
    """Regions of which nothing is left under higher ones."""
    if len({region.priority for region in regions.values()}) < 2:
        return []
    left = region_shares([*regions.values()], size[1], size[0], size, Edges.SOFT)[1:].flatten(1).amax(1)
    return [
        (i, ": lies wholly under regions of higher priority; expected a part of it to be seen")
        for (i, region), most in zip(regions.items(), left.tolist(), strict=True)
        if most == 0 and not isinstance(region.area, Sought)
    ]


def _say_overlaps(regions: Mapping[int, Region], size: Size, source: str) -> None:
    """One line when regions overlap and nothing says which of them has the place."""
    bare = {i: region.area.area if isinstance(region.area, Feathered) else region.area for i, region in regions.items()}
    inside = {i: area.coverage(size[1], size[0], size, Edges.SOFT) > 0.5 for i, area in bare.items()}
    pairs = [
        f"{first} and {second}"
        for first, second in combinations(regions, 2)
        if regions[first].priority == regions[second].priority
        and regions[first].weight == regions[second].weight
        and (inside[first] & inside[second]).any()
    ]
    if pairs:
        log.info("%s %s overlap and share the place; 'priority' or 'weight' would decide", source, ", ".join(pairs))
