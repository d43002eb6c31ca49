"""`mixshow lycoris list|describe ALGO|match MODEL`."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the algorithms and the presets")
    describe = actions.add_parser("describe", help="what an algorithm does, and its options")
    describe.add_argument("algorithm", metavar="ALGO", help="see `mixshow lycoris list`")
    match = actions.add_parser("match", help="what a preset would change in a model, with parameter counts")
    match.add_argument(
        "model", metavar="MODEL", help="'puppets', a diffusers folder, a hub id or a file; its shape is read"
    )
    match.add_argument("--preset", default="full", metavar="P", help="a preset or a YAML or TOML file (default: full)")
    match.add_argument("--algo", default="locon", metavar="ALGO", help="what is counted (default: %(default)s)")
    match.add_argument("--dim", type=int, default=8, help="rank (default: %(default)s)")
    match.add_argument("--conv-dim", type=int, metavar="DIM", help="rank of kernels larger than 1 (default: as --dim)")
    match.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="key=value",
        help="an option of the algorithm, such as factor=8; can be given again",
    )
    match.add_argument("--train-norm", action="store_true", help="change normalisation layers too")
    match.add_argument("--names", action="store_true", help="list every module")
    match.add_argument("--blocks", action="store_true", help="sums by block of the UNet, as network.blocks counts them")
    for action in (listing, describe, match):
        action.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> None:
    """Show."""
    from mixshow.recipes import lycoris

    if arguments.action == "list":
        text = lycoris.overview()
    elif arguments.action == "describe":
        text = lycoris.description(arguments.algorithm)
    else:
        text = lycoris.match(
            arguments.model,
            preset=arguments.preset,
            algo=arguments.algo,
            dim=arguments.dim,
            conv_dim=arguments.conv_dim,
            train_norm=arguments.train_norm,
            options=arguments.option,
            names=arguments.names,
            blocks=arguments.blocks,
        )
    print(text)
