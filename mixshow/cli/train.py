"""`mixshow train OPTIONS.yml [key=value ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "options",
        type=Path,
        metavar="OPTIONS.yml",
        help="an options file, ours or a published one of Mix-of-Show",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options that replace the file's: train.steps=200"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved options, name everything missing, and stop"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on from the newest checkpoint in the output folder (default), or start anew",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train."""
    from mixshow.recipes.train import train

    train(arguments.options, arguments.overrides, dry_run=arguments.dry_run, resume=arguments.resume)
