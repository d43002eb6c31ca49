"""`mixshow fuse OPTIONS.yml [key=value ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("options", type=Path, metavar="OPTIONS.yml", help="an options file; see options/fuse")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, the memory and the time; write nothing"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options that replace the file's: solver.ridge=0.001"
    )


def run(arguments: argparse.Namespace) -> None:
    """Fuse."""
    if arguments.dry_run:
        from mixshow.recipes.fuse_plan import plan_text

        print(plan_text(arguments.options, arguments.overrides))
        return
    from mixshow.recipes.fuse import fuse

    fuse(arguments.options, arguments.overrides)
