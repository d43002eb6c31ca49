"""Scenes of Mix-of-Show -> our options: region strings, and layout files with the pose pictures beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from mixshow.config.load import build
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.core.files import write_text
from mixshow.core.progress import log
from mixshow.recipes.outputs import check_output
from mixshow.recipes.renaming import parse_names, renamed
from mixshow.sampling.openpose import read_picture
from mixshow.sampling.published_regions import parse_regions, read_layout
from mixshow.sampling.regions import PixelBox, Region

Size = tuple[int, int]


def import_scene(
    file: Path,
    output: Path,
    *,
    size: Size | None = None,
    width: int | None = None,
    height: int | None = None,
    concepts: Sequence[str] = (),
    prompt: str = "",
    negative_prompt: str = "",
    model: str = "puppets",
    adapter: str | None = None,
) -> SceneOptions:
    """Write a scene's options that mean what a published file means: hard boxes, prompts without weights, cut.

    Args:
        file: a layout file, or a text file that holds a region string.
        output: YAML to write; the scene's pictures go beside it under its name.
        size: (width, height) that the boxes are in, in pixels; None: that of the pose picture beside the file, of its
            name.
        width: of the scene, in pixels; boxes and pose are scaled with it. None: by the height, or as the file has it.
        height: of the scene, in pixels; None: by the width.
        concepts: `OLD=NEW`, other characters in place of the published ones; see `renamed`.
        prompt: of the whole picture, which published files do not hold.
        negative_prompt: of the whole picture, and of regions that have none.
        model: that knows the characters.
        adapter: reads the pose picture; None: the scene has no pose.

    Raises:
        MixshowError: the file is of another form, or does not tell what is needed.
        OptionsError: regions that lie outside of the picture.
    """
    check_output(output, {str(file): file})
    regions = renamed(_regions(file, negative_prompt), parse_names(concepts), str(file))
    pose, picture = file.with_suffix(".png"), output.with_suffix(".png")
    if picture.resolve() == pose.resolve():
        picture = output.with_name(f"{output.stem}_scene.png")
    if size is None:
        if not pose.is_file():
            raise MixshowError(f"{file}: expected a pose picture {pose.name} beside it, or --size WxH; found none")
        size = read_picture(pose).size
    if problems := _outside(regions, size):
        raise OptionsError(str(file), problems)
    canvas, size = size, _scaled_size(size, width, height)
    regions = [
        dataclasses.replace(region, area=_scaled(cast(PixelBox, region.area), canvas, size)) for region in regions
    ]
    if problems := _outside(regions, size):
        raise OptionsError(str(file), problems)
    scene: dict[str, Any] = {
        "model": model,
        "size": list(size),
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "regions": [_entry(region, negative_prompt) for region in regions],
        "edges": "hard",
        "prompt_weights": False,
        "long_prompts": "cut",
        "output": str(picture),
    }
    if adapter is not None:
        if not pose.is_file():
            raise MixshowError(f"--adapter: expected a pose picture {pose.name} beside {file}, found none")
        scene["pose"] = {"image": str(pose), "adapter": adapter}
    options = build(SceneOptions, scene, str(file))
    write_text(output, OmegaConf.to_yaml(OmegaConf.create(scene)))
    log.info("%s: %d regions in %dx%d%s", output, len(regions), *size, "" if prompt else "; its prompt is empty")
    return options


def _regions(file: Path, negative_prompt: str) -> list[Region]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MixshowError(f"{file}: cannot be read as text ({error})") from error
    if not text.lstrip().startswith("["):
        return read_layout(file, negative_prompt=negative_prompt)
    return parse_regions(" ".join(text.split()), str(file))


def _scaled_size(canvas: Size, width: int | None, height: int | None) -> Size:
    """The scene's size, of the canvas's proportions.

    Raises:
        MixshowError: no size, or one of other proportions.
    """
    given = [side for side in (width, height) if side is not None]
    if not given:
        return canvas
    if min(given) < 1:
        raise MixshowError(f"--width, --height: expected 1 pixel or more, found {min(given)}")
    found = (
        width or round(canvas[0] * (height or 0) / canvas[1]),
        height or round(canvas[1] * (width or 0) / canvas[0]),
    )
    if abs(found[0] * canvas[1] - found[1] * canvas[0]) > max(canvas):  # more than a pixel
        raise MixshowError(
            f"--width, --height: expected the proportions of {canvas[0]}x{canvas[1]}, found {found[0]}x{found[1]}; "
            "one of them is enough"
        )
    return found


def _scaled(box: PixelBox, canvas: Size, size: Size) -> PixelBox:
    """A box of one canvas in another."""
    return PixelBox.from_numbers([number / side for number, side in zip(box.numbers, canvas * 2)], size)


def _outside(regions: list[Region], size: Size) -> list[str]:
    found = [(i, region.area.problem(size)) for i, region in enumerate(regions)]
    return [f"region {i}: {problem}" for i, problem in found if problem]


def _entry(region: Region, negative_prompt: str) -> dict[str, Any]:
    """A region as options; a negative prompt of its own only where it has one."""
    numbers = [int(number) for number in cast(PixelBox, region.area).numbers]
    entry: dict[str, Any] = {"box": numbers, "prompt": region.prompt}
    if region.negative_prompt != negative_prompt:
        entry["negative_prompt"] = region.negative_prompt
    return entry
