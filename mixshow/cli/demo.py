"""`mixshow demo`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--output", type=Path, default=Path("experiments/demo"), help="folder (default: %(default)s)")
    parser.add_argument("--cast", nargs=3, metavar="NAME", help="three cast members (default: pip luma rusty)")
    parser.add_argument("--seed", type=int, default=0, help="of training (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Run the demo."""
    from mixshow.recipes.demo import DEFAULT_CAST, demo

    demo(arguments.output, names=arguments.cast or DEFAULT_CAST, seed=arguments.seed)
