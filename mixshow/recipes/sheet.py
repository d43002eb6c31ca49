"""A contact sheet: pictures of one or several scenes in one HTML file, with all that made them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixshow.config.load import build, to_plain
from mixshow.config.scene import SceneOptions
from mixshow.evaluation.page import Page
from mixshow.models.vocabulary import concept_name, concept_words
from mixshow.sampling.openpose import read_picture
from mixshow.sampling.pictures import decoded_picture, read_about

_TOLD_ELSEWHERE = ("prompt", "negative_prompt", "regions", "seeds", "output", "batch_size")
_LONGEST = 200  # characters of an option's value: pictures in base64 say nothing


def write_sheet(path: Path, pictures: Sequence[Path]) -> None:
    """Write pictures that mixshow made as one page; those of one scene stand together.

    Args:
        path: HTML to write.
        pictures: PNGs with their scenes in their metadata.

    Raises:
        MixshowError: a picture without a scene, or the page cannot be written.
    """
    page = Page(path.stem)
    shown: dict[str, Any] | None = None
    for picture in pictures:
        about = read_about(picture)
        scene = about.get("scene", {})
        kept = {name: value for name, value in scene.items() if name not in ("seeds", "batch_size")}
        if kept != shown:
            _describe(page, scene, picture.stem)
            shown = kept
        page.picture(read_picture(picture), f"{picture.name}, seed {about.get('seed', 0)}")
    page.write(path)


def _describe(page: Page, scene: dict[str, Any], name: str) -> None:
    """A scene's prompts, regions, and what of its options is not the default."""
    page.heading(scene.get("prompt") or name)
    if scene.get("negative_prompt"):
        page.paragraph(f"Not: {scene['negative_prompt']}")
    if regions := scene.get("regions"):
        rows = [
            (
                str(i),
                _who(region),
                _where(region, scene.get("size")),
                region["prompt"],
                region.get("negative_prompt") or "",
            )
            for i, region in enumerate(regions)
        ]
        page.table(("region", "who", "where", "prompt", "not"), rows)
    usual = to_plain(build(SceneOptions, {"prompt": "", "output": "usual.png"}))
    options = [
        (name, _short(value))
        for name, value in scene.items()
        if name not in _TOLD_ELSEWHERE and value != usual.get(name)
    ]
    page.table(("option", "value"), options)


def _who(region: dict[str, Any]) -> str:
    """The concepts that a region is about; none where it is described in words."""
    named = dict.fromkeys(concept_name(word) for word in concept_words(region["prompt"]))
    return ", ".join([region["concept"]] if region.get("concept") else named)


def _where(region: dict[str, Any], size: list[int] | None) -> str:
    """Where a region is, in pixels of the scene."""
    if region.get("from"):
        return f"found from {region['from']}"
    if region.get("png"):
        mask = decoded_picture(region["png"]).convert("L")
        across, down = (side / own for side, own in zip(size or mask.size, mask.size))
        box = zip(mask.getbbox() or (0, 0, 0, 0), (across, down) * 2)
        return f"mask in box {_short([round(number * factor) for number, factor in box])}"
    shapes = ((name, region.get(name)) for name in ("box", "polygon"))
    return next((f"{name} {_short(value)}" for name, value in shapes if value), "")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        given = {name: item for name, item in value.items() if item not in (None, [])}
        return _cut(", ".join(f"{name}: {'...' if name == 'png' else _short(item)}" for name, item in given.items()))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _cut("[" + ", ".join(map(_short, value)) + "]" if isinstance(value, list) else str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
