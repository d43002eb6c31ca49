"""`mixshow puppets cast|evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    cast = actions.add_parser("cast", help="write training pictures, masks and captions of the cast characters")
    cast.add_argument("names", nargs="*", help="cast members (default: all)")
    cast.add_argument("--output", type=Path, default=Path("experiments/cast"), help="folder (default: %(default)s)")
    cast.add_argument("--pictures", type=int, default=14, help="pictures per character (default: %(default)s)")
    evaluate = actions.add_parser("evaluate", help="measure autoencoder, prompts, pose adapter and judge")
    evaluate.add_argument(
        "--output", type=Path, default=Path("experiments/puppets.json"), help="report file (default: %(default)s)"
    )
    evaluate.add_argument("--samples", type=int, default=400, help="pictures per figure (default: %(default)s)")
    evaluate.add_argument("--seed", type=int, default=0, help="first seed (default: %(default)s)")
    for action in (cast, evaluate):
        action.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    from mixshow.recipes import puppets

    if arguments.action == "cast":
        puppets.cast(arguments.output, names=arguments.names or None, pictures=arguments.pictures)
    else:
        puppets.evaluate(arguments.output, samples=arguments.samples, seed=arguments.seed)
