"""`mixshow statistics CONCEPT [key=value ...]`, `mixshow statistics --captions`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mixshow.core.errors import MixshowError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("concept", nargs="?", metavar="CONCEPT", help="a concept file: .safetensors, or .pth")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="any option: statistics.steps=10 layers=[all]"
    )
    parser.add_argument("--base", help="'puppets', a diffusers folder, a hub id or a single file (default: puppets)")
    parser.add_argument("--captions", action="store_true", help="the base's own statistics, on ordinary captions")
    parser.add_argument("--options", type=Path, metavar="FILE.yml", help="an options file; see options/statistics")
    parser.add_argument("--out", metavar="FILE", help="default: NAME.stats.safetensors beside the concept")


def run(arguments: argparse.Namespace) -> None:
    """Record and write."""
    from mixshow.recipes.statistics import record_statistics

    concept, overrides = arguments.concept, list(arguments.overrides)
    if concept is not None and "=" in concept and not Path(concept).is_file():
        concept, overrides = None, [concept, *overrides]  # an override where the concept may stand
    if arguments.captions and concept is not None:
        raise MixshowError(f"--captions: is for the base alone; leave '{concept}' out, or leave out --captions")
    given = {"concept": concept, "base": arguments.base, "output": arguments.out}
    values = {name: value for name, value in given.items() if value is not None}
    record_statistics(arguments.options, overrides, values=values, captions=arguments.captions)
