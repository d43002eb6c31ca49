"""Solving the UNet's layers in sequence at Stable Diffusion's size: time over bare passes, memory against its forecast.

    python benchmarks/fusion_sequence.py [--concepts 3] [--points 12 24] [--placement feed-forward] [--xl] [--side 32]

Random weights of its shape and random concepts of rank 4, on the CPU. Bare are the passes of the UNet that drawing the
pictures and going through their points in two models take, timed one by one on one picture; what is solved in sequence
is everything beside: moments and products at every layer, factorisations, and the concepts' and the fused changes added
to outputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time

import torch
from fusion_end_to_end import PLACEMENTS, concept
from sd15 import random_base, random_xl_base

from mixshow.core.stopwatch import PeakMemory, machine, resident_gb
from mixshow.edlora.layerwise import layerwise_states
from mixshow.evaluation.page import markdown_table
from mixshow.fusion import cost
from mixshow.fusion.baselines import weight_average
from mixshow.fusion.collect import Collection
from mixshow.fusion.factors import as_low_rank
from mixshow.fusion.fusion import FormedChanges, Fusion, parts_of
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.memory import IN_ORDER, fusion_memory
from mixshow.fusion.objective import Objective
from mixshow.fusion.own_and_fused import pictures_together, running_bytes, waiting_bytes
from mixshow.fusion.prompts import CAPTIONS
from mixshow.fusion.sequential import solved_in_order
from mixshow.fusion.solvers import LBFGS
from mixshow.fusion.thin import ranks_of
from mixshow.models import Base, prompt_states
from mixshow.sampling.generate import latent_size, start_noise


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=3)
    parser.add_argument(
        "--points", type=int, nargs="+", default=[12, 24], help="of all concepts (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=2, help="of a picture (default: %(default)s; 8 are shipped)")
    parser.add_argument("--placement", choices=PLACEMENTS, default="attention")
    parser.add_argument("--side", type=int, help="of the latents; default: the base's own, 64, of XL 128")
    parser.add_argument("--xl", action="store_true", help="Stable Diffusion XL's shape; takes 14 GB")
    given = parser.parse_args()
    print(json.dumps(machine()))
    base = random_xl_base() if given.xl else random_base()
    for model in base.models.values():
        model.eval().requires_grad_(False)
    members = [Member(concept(base, number, PLACEMENTS[given.placement])) for number in range(given.concepts)]
    side = None if given.side is None else given.side * base.topology.latent_factor
    print(f"model: {resident_gb():.1f} GB of memory", flush=True)
    collection = Collection(sequential=True, steps=given.steps, width=side, height=side)
    rows = [measured(base, members, dataclasses.replace(collection, points=points)) for points in given.points]
    print(markdown_table(list(rows[0]), [list(row.values()) for row in rows]))


def measured(base: Base, members: list[Member], collection: Collection) -> dict[str, str | int]:
    """One row of the table."""
    objective = Objective(1e-2, 0.3, CAPTIONS)
    layers = changed_layers(base, members, Stage.SPATIAL)
    stages = {layer.path: layer.stage for layer in layers_of(base).values()}
    average = weight_average(base, members)
    low_rank, _ = as_low_rank(base, members, average)
    others = FormedChanges(
        {path: parts_of(low_rank.changes, path) for path in low_rank.changes if stages[path] is not Stage.SPATIAL}
    )
    passes = cost.sequential_passes(collection, len(members), len(CAPTIONS), base.topology.layers)
    bare = passes.unet * unet_seconds(base, collection)
    count = len(members)
    points = count * collection.share_of_points(count) + collection.share_of_points(count, captions=True)
    every = [layer for stage in Stage for layer in changed_layers(base, members, stage)]
    waiting = waiting_bytes(base, collection, points)
    forecast = fusion_memory(
        every,
        collection,
        count,
        count + 1,
        waiting=waiting,
        ranks=ranks_of(base, members),
        running=running_bytes(base, collection),
        together=pictures_together(base, collection),
    )[IN_ORDER]
    with PeakMemory() as peak:
        start = time.perf_counter()
        found = solved_in_order(
            base, members, Fusion(others, average.embeddings), layers, collection, objective, LBFGS(precondition=True)
        )
        seconds = time.perf_counter() - start
    assert len(found) == len(layers)
    return {
        "concepts": count,
        "points, captions' too": points,
        "layers": len(layers),
        "passes of the UNet": passes.unet,
        "bare, s": f"{bare:.1f}",
        "in sequence, s": f"{seconds:.1f}",
        "ratio": f"{seconds / bare:.2f}",
        "memory beside the model, GB": f"{peak.gb:.2f}",
        "forecast, GB": f"{forecast / 1e9:.2f}",
    }


@torch.no_grad()
def unet_seconds(base: Base, collection: Collection) -> float:
    """Of one picture at one step, text not counted: median of three after a first."""
    height, width = latent_size(base, collection.width, collection.height)
    latents, states = start_noise(base, [0], height, width), prompt_states(base, ["a photo"])
    seconds = []
    with layerwise_states(base.unet):
        for _ in range(4):
            start = time.perf_counter()
            base.unet(latents, 1, **states.for_unet(latents))
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
