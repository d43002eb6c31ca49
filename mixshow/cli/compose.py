"""`mixshow compose SCENE.yml [key=value ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "scene",
        type=Path,
        metavar="SCENE.yml",
        help="a scene's options, or a PNG that mixshow made, to make it again",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options that replace the file's: seeds=[3,4]"
    )
    stops = parser.add_mutually_exclusive_group()
    stops.add_argument(
        "--preview", action="store_true", help="draw regions and poses to NAME_preview.png, and stop; needs no model"
    )
    stops.add_argument(
        "--check", action="store_true", help="name everything that is wrong with the scene, and stop; loads no model"
    )


def run(arguments: argparse.Namespace) -> None:
    """Compose."""
    from mixshow.core.progress import log
    from mixshow.recipes.check import check_options
    from mixshow.recipes.compose import compose_file, preview_file, read_scene_file

    if arguments.preview:
        preview_file(arguments.scene, arguments.overrides)
    elif arguments.check:
        options, _ = read_scene_file(arguments.scene, arguments.overrides)
        check_options(options, str(arguments.scene))
        log.info("%s: nothing found to be wrong", arguments.scene)
    else:
        compose_file(arguments.scene, arguments.overrides)
