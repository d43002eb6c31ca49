"""Distilling at Stable Diffusion's size: memory against its forecast, and seconds of a step.

    python benchmarks/fusion_distill.py [--factors] [--batch 4] [--accumulation 4] [--side 32]
                                        [--placement feed-forward] [--xl]

Random weights of its shape and two random concepts of rank 4, a few steps on lessons of one prompt, on the CPU. One way
a run: what a process once held is not counted again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from fusion_end_to_end import PLACEMENTS, concept
from sd15 import random_base, random_xl_base

from mixshow.config.fuse import FuseOptions
from mixshow.config.recording import StatisticsOptions
from mixshow.config.refine import RefineOptions
from mixshow.core.stopwatch import PeakMemory, machine, resident_gb
from mixshow.core.subnormals import subnormals_flushed
from mixshow.evaluation.page import markdown_table
from mixshow.fusion.baselines import weight_average
from mixshow.fusion.distill import distill
from mixshow.fusion.factors import as_low_rank
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.layers import Stage
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.own_and_fused import UNET
from mixshow.models import Base
from mixshow.recipes.fuse_memory import memory_of_distilling
from mixshow.recipes.fuse_refine import distill_plan


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--placement", choices=PLACEMENTS, default="attention")
    parser.add_argument("--factors", action="store_true", help="as refine.low_rank; otherwise weights as wholes")
    parser.add_argument("--batch", type=int, default=4, help="predictions of a step (default: %(default)s)")
    parser.add_argument("--accumulation", type=int, default=1, help="passes of a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2, help="of the optimizer (default: %(default)s)")
    parser.add_argument("--side", type=int, default=32, help="of the latents (default: %(default)s)")
    parser.add_argument("--xl", action="store_true", help="Stable Diffusion XL's shape; takes 14 GB")
    given = parser.parse_args()
    print(json.dumps(machine()))
    base = random_xl_base() if given.xl else random_base()
    for model in base.models.values():
        model.eval().requires_grad_(False)
    members = [Member(concept(base, number, PLACEMENTS[given.placement])) for number in range(2)]
    print(f"model: {resident_gb():.1f} GB of memory", flush=True)
    refine = RefineOptions(
        steps=given.steps, batch_size=given.batch, accumulation=given.accumulation, rounds=1, low_rank=given.factors
    )
    with subnormals_flushed():
        row = measured(base, members, refine, given.side * base.topology.latent_factor)
    print(markdown_table(list(row), [list(row.values())]))


def measured(base: Base, members: list[Member], refine: RefineOptions, side: int) -> dict[str, str | int]:
    """One row of the table."""
    size = StatisticsOptions(width=side, height=side)
    options = FuseOptions(base="", concepts=[], output=Path(), refine=refine, statistics=size)
    layers = [layer for stage in UNET for layer in changed_layers(base, members, stage)]
    assert any(layer.stage is Stage.SPATIAL for layer in layers)
    forecast = memory_of_distilling(base, members, options, layers)
    plan = dataclasses.replace(
        distill_plan(options, len(members)), prompts=["{concept}"], captions=["a photo"], walk_steps=2
    )
    with PeakMemory() as peak:
        fusion, factors = solution(base, members, factors=bool(refine.low_rank))
        start = time.perf_counter()
        distill(base, members, fusion, plan, factors=factors)
        seconds = time.perf_counter() - start
    return {
        "weights": "factors" if refine.low_rank else "wholes",
        "predictions in a pass": plan.batch_size // plan.accumulation,
        "lessons and steps, s": f"{seconds:.1f}",
        "memory beside the model, GB": f"{peak.gb:.2f}",
        "forecast, GB": f"{forecast / 1e9:.2f}",
    }


def solution(base: Base, members: list[Member], *, factors: bool) -> tuple[Fusion, dict | None]:
    """Where distilling starts: factors in double precision, as a solver leaves them."""
    fusion, found = as_low_rank(base, members, weight_average(base, members))
    return fusion, found if factors else None


if __name__ == "__main__":
    main()
