"""What is wrong with training options, their data and paths, before anything slow is loaded."""

from __future__ import annotations

from pathlib import Path

from mixshow.config.train import SampleOptions, TrainOptions
from mixshow.core.errors import MixshowError
from mixshow.edlora.captions import bind_concept
from mixshow.edlora.initialiser import parse_initialiser, parse_tokens
from mixshow.edlora.pictures import Picture, find_pictures
from mixshow.models.base import source_problem
from mixshow.recipes.blocks import block_table
from mixshow.recipes.lycoris import outline


def missing_paths(options: TrainOptions) -> list[str]:
    """Folders and files that options name and that are not there, one sentence each."""
    data, prompts = options.data, options.sample.prompts
    places: dict[Path, list[str]] = {}
    for name, folder in (
        ("data.images", data.images),
        ("data.masks", data.masks),
        ("data.captions", data.captions),
    ):
        if folder is not None and not folder.is_dir():
            places.setdefault(folder, []).append(name)
    return [
        *(
            f"{name}: {problem}"
            for name, place in (("base", options.base), ("vae", options.vae))
            if place is not None and (problem := source_problem(place))
        ),
        *(
            f"{', '.join(names)}: no such {'concept list' if place.suffix == '.json' else 'folder'}: {place}"
            for place, names in places.items()
        ),
        *([f"sample.prompts: no such file: {prompts}"] if isinstance(prompts, Path) and not prompts.is_file() else []),
    ]


def check(options: TrainOptions) -> tuple[list[Picture], list[str], list[str]]:
    """What options refer to: `(pictures, prompts of the grids, problems)`; nothing slow is loaded.

    What is missing altogether is left to `missing_paths`.
    """
    problems: list[str] = []
    tokens: list[str] = []
    try:
        tokens = parse_tokens(options.concept.tokens)
        parse_initialiser(options.concept.initialiser, tokens)
    except MixshowError as error:
        problems.append(f"concept: {error}")
    data = options.data
    pictures: list[Picture] = []
    if all(folder is None or folder.is_dir() for folder in (data.images, data.masks, data.captions)):
        pictures, found = find_pictures(
            data.images, masks=data.masks, captions=data.captions, prompt=data.prompt, tokens=tokens
        )
        problems += found
    prompts: list[str] = []
    try:
        prompts = [bind_concept(prompt, tokens) for prompt in _grid_prompts(options.sample)]
    except MixshowError as error:
        problems.append(str(error))
    return pictures, prompts, problems


def check_blocks(options: TrainOptions) -> tuple[str, list[str]]:
    """The table of the UNet's blocks where options set them one by one, and what is wrong with these options."""
    if options.network.blocks is None:
        return "", []
    try:
        models = outline(options.base)
    except MixshowError:  # the base is missing, or its shape can only be read by loading it
        return "", []
    try:
        return block_table(models, options.network, options.train.lr.unet), []
    except MixshowError as error:
        return "", [str(error)]


def _grid_prompts(options: SampleOptions) -> list[str]:
    if not isinstance(options.prompts, Path):
        return options.prompts
    if not options.prompts.is_file():
        return []
    try:
        lines = options.prompts.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MixshowError(f"sample.prompts: {options.prompts} cannot be read as text, one prompt per line") from error
    return [line.strip() for line in lines if line.strip()]
