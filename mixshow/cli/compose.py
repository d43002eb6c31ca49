"""`mixshow compose SCENE.yml [SCENE.yml ...] [key=value ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mixshow.core.errors import MixshowError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "scene",
        type=Path,
        metavar="SCENE.yml",
        help="a scene's options, or a PNG that mixshow made, to make it again; further ones may stand behind it",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options that replace the files': seeds=[3,4]"
    )
    parser.add_argument("--sheet", type=Path, metavar="HTML", help="also write all pictures with their options there")
    stops = parser.add_mutually_exclusive_group()
    stops.add_argument(
        "--preview", action="store_true", help="draw regions and poses to NAME_preview.png, and stop; needs no model"
    )
    stops.add_argument(
        "--check", action="store_true", help="name everything that is wrong with the scene, and stop; loads no model"
    )
    stops.add_argument(
        "--redo",
        action="append",
        default=[],
        metavar="REGION",
        help="make only this region of a PNG again, by number from 0 or concept; can be given again",
    )


def run(arguments: argparse.Namespace) -> None:
    """Compose."""
    from mixshow.core.progress import log
    from mixshow.recipes.check import check_options
    from mixshow.recipes.compose import compose_files, preview_file, read_scene_file
    from mixshow.recipes.redo import redo_file

    scenes = [arguments.scene, *(Path(word) for word in arguments.overrides if "=" not in word)]
    overrides = [word for word in arguments.overrides if "=" in word]
    if arguments.redo:
        if len(scenes) > 1 or arguments.sheet is not None:
            raise MixshowError("--redo: expected one picture and no --sheet, found more")
        redo_file(arguments.scene, arguments.redo, overrides)
    elif arguments.preview:
        for scene in scenes:
            preview_file(scene, overrides)
    elif arguments.check:
        for scene in scenes:
            options, only = read_scene_file(scene, overrides)
            check_options(options, str(scene), only=only)
            log.info("%s: nothing found to be wrong", scene)
    else:
        compose_files(scenes, overrides, sheet=arguments.sheet)
