"""Multiplications of a picture with regions over the same picture with one prompt; counted, not timed.

Nothing is computed: the models have shapes and no values, so this takes seconds and gives the same figures everywhere.
Counted are matrix products, convolutions and attention of text encoder and UNet; not the decoder, the same for all.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.compose_speed import ONE, PICTURE_STEPS, Way, tokens_of, ways_to_draw
from benchmarks.sd15 import random_base
from mixshow.edlora.layerwise import layerwise_states
from mixshow.evaluation.page import markdown_table
from mixshow.models import Base, PromptStates
from mixshow.models.embedding_table import with_concept_tokens
from mixshow.sampling.regions import Edges


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--regions", nargs="+", type=int, default=[3, 8], help="how many, side by side")
    parser.add_argument("--side", type=int, default=512, help="pixels")


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    print(table(counted(shape_of_base(max(arguments.regions)), arguments.regions, arguments.side)))


def shape_of_base(count: int) -> Base:
    """A base of Stable Diffusion 1.5's shape, without values, that knows the tokens of so many characters."""
    with torch.device("meta"):
        base = random_base()
        vectors = {token: torch.empty(base.topology.layers, base.topology.text_width) for token in tokens_of(count)}
        return with_concept_tokens(base, vectors)[0]


@torch.no_grad()
def counted(base: Base, counts: list[int], side: int) -> dict[str, tuple[int, int, int]]:
    """For each way the operations of its text, its first step and a later one."""
    return {name: of_way(base, way, side) for name, way in ways_to_draw(counts, list(Edges)).items()}


def of_way(base: Base, way: Way, side: int) -> tuple[int, int, int]:
    with FlopCounterMode(display=False) as text:
        towards, away, attachment = way(base, side)
    positions = side // base.topology.latent_factor
    halves = torch.empty(2, base.topology.latent_channels, positions, positions, device="meta")
    states = PromptStates.joined([away, towards])
    steps = []
    with attachment, layerwise_states(base.unet):
        for _ in range(2):
            with FlopCounterMode(display=False) as step:
                base.unet(halves, torch.tensor(500), **states.for_unet(halves))
            steps.append(step.get_total_flops())
    return text.get_total_flops(), steps[0], steps[1]


def table(costs: dict[str, tuple[int, int, int]]) -> str:
    """Operations in units of 10^12, and ratios to the one prompt."""

    def of_picture(name: str) -> float:
        text, first, later = costs[name]
        return text + first + (PICTURE_STEPS - 1) * later

    rows = [
        [
            name,
            *(f"{part / 1e12:.3f}" for part in cost),
            f"{cost[2] / costs[ONE][2]:.3f}",
            f"{of_picture(name) / 1e12:.1f}",
            f"{of_picture(name) / of_picture(ONE):.3f}",
        ]
        for name, cost in costs.items()
    ]
    header = ["way", "text", "first step", "later step", "ratio", f"{PICTURE_STEPS} steps", "ratio"]
    return markdown_table(header, rows)
