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


def run(arguments: argparse.Namespace) -> None:
    """Compose."""
    from mixshow.recipes.compose import compose_file

    compose_file(arguments.scene, arguments.overrides)
