"""Choosing the defaults of fusion: ways of collecting x rows x ridge x anchor, by held-out errors.

    python benchmarks/fusion_defaults.py BASE CONCEPT [CONCEPT ...]

E is 0 where the fused model predicts noise like the concept's own model, 1 where it does no better than the base;
drift is what the fused model does to ordinary captions. Statistics are recorded once per way of collecting and reused
for every ridge and anchor (only progressive ones depend on the solution and are recorded anew). `--distill 100 300`
adds the default way, then so many steps of distilling.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mixshow.config.fuse import FuseOptions
from mixshow.formats import read_concept
from mixshow.fusion.baselines import weight_average, weighted_sum
from mixshow.fusion.collect import PUBLISHED, Collection
from mixshow.fusion.distill import distill
from mixshow.fusion.fuse import Fusion, Objective, fuse, record_stage
from mixshow.fusion.heldout import HeldOut
from mixshow.fusion.layers import Stage
from mixshow.fusion.lessons import DistillPlan
from mixshow.fusion.members import Member
from mixshow.fusion.prompts import CAPTIONS
from mixshow.fusion.solvers import Exact
from mixshow.models import Base, load_base

RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
ANCHORS = (0.0, 0.3, 1.0)
COLLECTIONS = {
    "progressive, published rows and prompts": PUBLISHED,
    "progressive, all rows and prompts": Collection(progressive=True),
    "independent, published rows and prompts": replace(PUBLISHED, progressive=False),
    "independent, concept rows, all prompts": Collection(every_position=False),
    "independent, all rows and prompts": Collection(),
}


def table(
    base: Base, members: Sequence[Member], *, ridges: Sequence[float], anchors: Sequence[float]
) -> list[tuple[str, Fusion]]:
    """Every way of fusing, with its name."""
    fusions = [("sum of changes", weighted_sum(base, members)), ("average of changes", weight_average(base, members))]
    for name, collection in COLLECTIONS.items():
        recorded = None
        if not collection.progressive:
            with_anchor = Objective(anchor_weight=1.0, captions=CAPTIONS)
            recorded = {
                stage: record_stage(base, members, stage, collection, with_anchor, show_progress=True)
                for stage in Stage
            }
        for ridge, anchor in itertools.product(ridges, anchors):
            objective = Objective(ridge=ridge, anchor_weight=anchor, captions=CAPTIONS)
            fusion = fuse(base, members, collection, objective, dict.fromkeys(Stage, Exact()), recorded=recorded)
            fusions.append((f"{name}, ridge {ridge:g}, anchor {anchor:g}", fusion))
    return fusions


def distilled(base: Base, members: Sequence[Member], steps: Sequence[int]) -> list[tuple[str, Fusion]]:
    """The default way of fusing, refined for so many steps."""
    defaults = FuseOptions(base="", concepts=[], output=Path())
    objective = Objective(defaults.solver.ridge, defaults.anchor.weight, CAPTIONS)
    start = fuse(base, members, Collection(), objective, dict.fromkeys(Stage, Exact()), show_progress=True)
    rate = defaults.refine.rate
    return [
        (f"default, {count} steps of distilling", distill(base, members, start, DistillPlan(count, rate)))
        for count in steps
    ]


def main() -> None:
    """Print the table, best mean E last."""
    parser = argparse.ArgumentParser(description="held-out errors of many ways of fusing")
    parser.add_argument("base", help="'puppets', a diffusers folder or a hub id")
    parser.add_argument("concepts", nargs="+", type=Path, help="concept files")
    parser.add_argument("--ridges", nargs="+", type=float, default=RIDGES)
    parser.add_argument("--anchors", nargs="+", type=float, default=ANCHORS)
    parser.add_argument("--distill", nargs="*", type=int, default=[], metavar="STEPS")
    arguments = parser.parse_args()
    base = load_base(arguments.base)
    members = [Member(read_concept(path)) for path in arguments.concepts]
    held_out = HeldOut(base, members, show_progress=True)
    rows = []
    fusions = table(base, members, ridges=arguments.ridges, anchors=arguments.anchors)
    for name, fusion in fusions + distilled(base, members, arguments.distill):
        fused, attachment = fusion.attach(base)
        with attachment:
            scores = held_out.score(fused)
        rows.append((statistics.mean(scores.errors.values()), name, scores))
    width = max(len(name) for _, name, _ in rows)
    print(f"{'fused by':<{width}}  mean E  " + "  ".join(member.concept.text for member in members) + "  drift")
    for mean, name, scores in sorted(rows, key=lambda row: -row[0]):
        each = "  ".join(f"{scores.errors[member.concept.text]:>{len(member.concept.text)}.2f}" for member in members)
        print(f"{name:<{width}}  {mean:6.2f}  {each}  {scores.drift:.3f}")


if __name__ == "__main__":
    main()
