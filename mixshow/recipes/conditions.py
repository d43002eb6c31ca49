"""The conditions of a scene's options and the files they name -> conditions as values, and what reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from PIL import Image

from mixshow.config.condition import ConditionOptions
from mixshow.config.pose import PoseOptions
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError
from mixshow.models import Base
from mixshow.recipes.regions import say_size
from mixshow.sampling.conditions import adapter_problem, check_adapter, load_adapter
from mixshow.sampling.controlnet import check_controlnet, controlnet_problem, load_controlnet
from mixshow.sampling.masks import grey, mask_of
from mixshow.sampling.openpose import fit_picture, read_picture
from mixshow.sampling.pictures import decoded_picture, encoded_picture
from mixshow.sampling.scene import ConditionPicture, ConditionReader

Size = tuple[int, int]


def read_conditions(options: SceneOptions, problems: list[str]) -> tuple[tuple[ConditionPicture, ...], SceneOptions]:
    """Read the conditions' pictures and masks.

    Args:
        problems: what is wrong is added here; the result must then not be used.

    Returns:
        The conditions, and options that hold their pictures: they name no files of pictures any more.
    """
    if options.size is None or not options.conditions:
        return (), options
    found, resolved = [], []
    for i, entry in enumerate(options.conditions):
        try:
            condition, kept = _condition(entry, options.size)
        except MixshowError as error:
            problems.append(f"conditions[{i}].{error}")
            continue
        found.append(condition)
        resolved.append(kept)
    return tuple(found), dataclasses.replace(options, conditions=resolved)


def missing_readers(options: SceneOptions) -> list[str]:
    """Adapters and ControlNets that can be none, one sentence each."""
    found = []
    for i, entry in enumerate(options.conditions):
        if entry.adapter is not None and (problem := adapter_problem(entry.adapter)):
            found.append(f"conditions[{i}].adapter: {problem}")
        if entry.controlnet is not None and (problem := controlnet_problem(entry.controlnet)):
            found.append(f"conditions[{i}].controlnet: {problem}")
    return found


def unfit_readers(options: SceneOptions, unet: Mapping[str, Any]) -> list[str]:
    """Adapters and ControlNets of another kind of base, by their configurations alone.

    Args:
        unet: configuration of the scene's model's.
    """
    found = []
    named: list[tuple[str, ConditionOptions | PoseOptions]] = [
        (f"conditions[{i}]", entry) for i, entry in enumerate(options.conditions)
    ]
    if options.pose is not None:
        named.append(("pose", options.pose))
    for name, entry in named:
        try:
            if entry.controlnet is not None:
                check_controlnet(entry.controlnet, unet, options.model, entry.control_type)
            elif entry.adapter is not None:
                check_adapter(entry.adapter, unet, options.model)
        except MixshowError as error:
            found.append(f"{name}.{error}")
    return found


def load_pose_reader(pose: PoseOptions, base: Base) -> ConditionReader:
    """The network that reads the pose.

    Raises:
        MixshowError: it does not fit the base, or cannot be loaded.
    """
    if pose.controlnet is not None:
        return load_controlnet(pose.controlnet, base, pose.control_type)
    return load_adapter(pose.adapter, base)


def load_readers(options: SceneOptions, base: Base) -> list[ConditionReader]:
    """The network of each condition; conditions that name the same one share it.

    Raises:
        MixshowError: one of them does not fit the base, or cannot be loaded.
    """
    loaded: dict[tuple[str | None, str | None], ConditionReader] = {}
    for entry in options.conditions:
        key = entry.adapter, entry.controlnet
        if key not in loaded and entry.adapter is not None:
            loaded[key] = load_adapter(entry.adapter, base)
        elif key not in loaded and entry.controlnet is not None:
            loaded[key] = load_controlnet(entry.controlnet, base, entry.control_type)
    return [loaded[entry.adapter, entry.controlnet] for entry in options.conditions]


def _condition(entry: ConditionOptions, size: Size) -> tuple[ConditionPicture, ConditionOptions]:
    """One condition, and its options without files."""
    picture = read_picture(entry.image) if entry.image is not None else decoded_picture(entry.png or "")
    picture = _fitted(picture.convert("RGB"), size, entry)
    mask = read_picture(entry.mask) if entry.mask is not None else None
    if entry.mask_png is not None:
        mask = decoded_picture(entry.mask_png)
    elif mask is not None:
        say_size(str(entry.mask), mask, size)
    try:
        area = None if mask is None else mask_of(mask)
    except MixshowError as error:
        raise MixshowError(f"mask: {entry.mask or 'mask_png'}: {error}") from error
    mask_png = None if mask is None else encoded_picture(grey(mask))
    kept = dataclasses.replace(entry, image=None, png=encoded_picture(picture), mask=None, mask_png=mask_png)
    return ConditionPicture(picture, entry.weight, entry.span, area, entry.control_type), kept


def _fitted(picture: Image.Image, size: Size, entry: ConditionOptions) -> Image.Image:
    """The picture in the scene's size; how, where its aspect ratio is another."""
    alike = abs(picture.width * size[1] - picture.height * size[0]) <= max(picture.size)  # to a pixel
    if entry.fit == "refuse" and not alike:
        raise MixshowError(
            f"image: {entry.image or 'png'}: expected the aspect ratio of {size[0]}x{size[1]}, found "
            f"{picture.width}x{picture.height}; 'fit: letterbox' or 'fit: stretch' would take it"
        )
    letterboxed = entry.fit == "letterbox" and not alike
    say_size(str(entry.image or "png"), picture, size, "letterboxed into" if letterboxed else "stretched over")
    if letterboxed:
        return fit_picture(picture, size)
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
