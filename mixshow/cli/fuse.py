"""`mixshow fuse OPTIONS.yml [key=value ...]`, `mixshow fuse FUSED --add FILE --remove NAME --reweight NAME=W`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mixshow.core.errors import MixshowError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "options",
        type=Path,
        metavar="OPTIONS.yml",
        help="an options file; see options/fuse; with the options below a fused model that kept its statistics",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, the memory and the time; write nothing"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="options that replace the file's: solver.ridge=0.001"
    )
    changes = {
        "--add": ("FILE", "a concept, or an options file with the keys of concepts[], to solve again with"),
        "--remove": ("NAME", "a concept to solve again without"),
        "--reweight": ("NAME=W", "another weight for a concept"),
    }
    for name, (metavar, text) in changes.items():
        parser.add_argument(name, action="append", default=[], metavar=metavar, help=f"{text}; can be given again")


def run(arguments: argparse.Namespace) -> None:
    """Fuse."""
    changes = {"add": arguments.add, "remove": arguments.remove, "reweight": arguments.reweight}
    if arguments.dry_run:
        if any(changes.values()):
            raise MixshowError(
                "--dry-run: expected no --add, --remove or --reweight beside it, found one; solving again takes seconds"
            )
        from mixshow.recipes.fuse_plan import plan_text

        print(plan_text(arguments.options, arguments.overrides))
        return
    from mixshow.recipes.fuse import fuse
    from mixshow.recipes.fuse_again import fuse_again

    if any(changes.values()):
        fuse_again(arguments.options, arguments.overrides, **changes)
    else:
        fuse(arguments.options, arguments.overrides)
