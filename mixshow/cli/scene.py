"""`mixshow scene import FILE --output SCENE.yml`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mixshow.core.errors import MixshowError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    reader = commands.add_parser("import", help="a scene of Mix-of-Show's as options")
    reader.add_argument(
        "file", type=Path, metavar="FILE", help="a layout file (box1='[...]' char1='...'), or a text of a region string"
    )
    reader.add_argument("--output", type=Path, required=True, metavar="SCENE.yml", help="options file to write")
    reader.add_argument(
        "--size", metavar="WxH", help="that the boxes are in; without, that of a pose picture beside the file"
    )
    reader.add_argument("--width", type=int, metavar="PIXELS", help="of the scene; boxes and pose are scaled with it")
    reader.add_argument("--height", type=int, metavar="PIXELS", help="of the scene, instead of its width")
    reader.add_argument(
        "--concept",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="another character in a published one's place: hermione=pip, or 'goku=a robot'; can be given again",
    )
    reader.add_argument("--prompt", default="", help="of the whole picture")
    reader.add_argument("--negative", default="", metavar="PROMPT", help="what the picture should not show")
    reader.add_argument("--model", default="puppets", help="the fused model that knows the characters")
    reader.add_argument("--adapter", help="a T2I-Adapter for the pose picture beside the file; without, no pose")


def run(arguments: argparse.Namespace) -> None:
    """Import."""
    from mixshow.recipes.scene_import import import_scene

    import_scene(
        arguments.file,
        arguments.output,
        size=None if arguments.size is None else _size(arguments.size),
        width=arguments.width,
        height=arguments.height,
        concepts=arguments.concept,
        prompt=arguments.prompt,
        negative_prompt=arguments.negative,
        model=arguments.model,
        adapter=arguments.adapter,
    )


def _size(text: str) -> tuple[int, int]:
    width, sign, height = text.lower().partition("x")
    if not (sign and width.isdecimal() and height.isdecimal()):
        raise MixshowError(f"--size: expected WIDTHxHEIGHT such as 1024x512, found '{text}'")
    return int(width), int(height)
