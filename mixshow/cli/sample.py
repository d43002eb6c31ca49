"""`mixshow sample PROMPT`: a scene without regions, from the command line alone."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mixshow.core.errors import MixshowError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("prompt", metavar="PROMPT", help="concept tokens in it as they were trained: '<pip1> <pip2>'")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any option of a scene: guidance=4 steps=30")
    parser.add_argument(
        "--model", default="puppets", help="'puppets', a fused model's or diffusers folder, a hub id or a single file"
    )
    parser.add_argument(
        "--concept",
        action="append",
        default=[],
        metavar="FILE",
        help="a concept file to attach; can be given again",
    )
    parser.add_argument(
        "--strength",
        action="append",
        default=[],
        type=float,
        help="factor on a concept's network, one per --concept",
    )
    parser.add_argument(
        "--network",
        action="append",
        default=[],
        metavar="FILE[=STRENGTH]",
        help="a network file of any algorithm, at a strength (1); can be given again",
    )
    parser.add_argument(
        "--merge", action="store_true", help="put the networks into the weights instead of attaching them"
    )
    parser.add_argument("--negative", default="", metavar="PROMPT", help="what the pictures should not show")
    parser.add_argument("--seeds", default="0", help="one picture per seed: 0-3 or 1,5,7")
    parser.add_argument(
        "--out", default="sample.png", metavar="PNG", help="with several seeds NAME_seedN.png and a grid"
    )


def run(arguments: argparse.Namespace) -> None:
    """Sample."""
    from mixshow.config.load import load
    from mixshow.config.scene import SceneOptions
    from mixshow.config.seeds import parse_seeds
    from mixshow.recipes.compose import compose_options

    try:
        seeds = parse_seeds(arguments.seeds)
    except MixshowError as error:
        raise MixshowError(f"--seeds: {error}") from error
    values = {
        "prompt": arguments.prompt,
        "model": arguments.model,
        "concepts": arguments.concept,
        "strengths": arguments.strength or None,
        "networks": [parse_network(text) for text in arguments.network],
        "merge_networks": arguments.merge,
        "negative_prompt": arguments.negative,
        "seeds": seeds,
        "output": arguments.out,
        "grid": True,
    }
    compose_options(load(SceneOptions, Path("sample"), arguments.overrides, values=values), "sample")


def parse_network(text: str) -> dict[str, Any]:
    """File and strength of `"F=0.8"`, split at the last `=`, or of a file's name alone.

    Raises:
        MixshowError: what follows the last `=` is no number, and all of it together no file.
    """
    file, sign, strength = text.rpartition("=")
    if not sign:
        return {"file": text}
    try:
        return {"file": file, "strength": float(strength)}
    except ValueError:
        if Path(text).expanduser().is_file():  # a path with a sign of its own
            return {"file": text}
        raise MixshowError(
            f"--network: expected FILE or FILE=STRENGTH such as style.safetensors=0.8, found '{text}', where "
            f"'{strength}' is no number"
        ) from None
