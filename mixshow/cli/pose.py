"""`mixshow pose draw|detect|show`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    draw = actions.add_parser("draw", help="draw people to an OpenPose picture, or write them as OpenPose JSON")
    draw.add_argument(
        "pose",
        metavar="POSE",
        help="a pose file (JSON, or a PNG with key points), a scene (YAML), or people as in one: "
        "'[{person: waving, at: [0.3, 0.9]}, {person: sitting}]'",
    )
    draw.add_argument(
        "--size", metavar="WxH", help="pixels, such as 512x512 (default: the file's own or the scene's, else 512x512)"
    )
    draw.add_argument("--output", type=Path, default=Path("pose.png"), help="a .png, or .json (default: %(default)s)")
    detect = actions.add_parser("detect", help="find people in a photograph and write them as OpenPose JSON")
    detect.add_argument("photo", type=Path, metavar="PHOTO")
    detect.add_argument("--output", type=Path, help="a .json, or .png to draw them (default: PHOTO_pose.json)")
    detect.add_argument("--detector", default="openpose", help="openpose or dwpose (default: %(default)s)")
    detect.add_argument("--model", metavar="M", help="a folder or hub id with its weights (default: its authors')")
    detect.add_argument("--device", default="auto", help="'auto', 'cpu', 'cuda', ... (default: %(default)s)")
    show = actions.add_parser("show", help="draw all named poses on one sheet, or tell what is in a pose file")
    show.add_argument("file", nargs="?", type=Path, metavar="FILE", help="JSON, or a PNG with key points")
    show.add_argument("--output", type=Path, default=Path("poses.png"), help="of the sheet (default: %(default)s)")
    show.add_argument("--body", default="adult", help="of the sheet: adult, child or puppet (default: %(default)s)")
    for action in (draw, detect, show):
        action.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Draw, find or show."""
    from mixshow.recipes import pose_commands

    if arguments.action == "draw":
        pose_commands.draw(arguments.pose, arguments.output, arguments.size)
    elif arguments.action == "detect":
        pose_commands.detect(
            arguments.photo,
            arguments.output or arguments.photo.with_name(f"{arguments.photo.stem}_pose.json"),
            detector=arguments.detector,
            model=arguments.model,
            device=arguments.device,
        )
    elif arguments.file is not None:
        print(pose_commands.description(arguments.file))
    else:
        pose_commands.sheet(arguments.output, arguments.body)
