"""Choosing the defaults of fusion: ways of collecting x rows x ridge x anchor x shrinkage, by held-out errors.

    python benchmarks/fusion_defaults.py BASE CONCEPT [CONCEPT ...] [--ridges 1e-2] [--anchors 0 0.3] [--passes 4]

E is 0 where the fused model predicts noise like the concept's own model, 1 where it does no better than the base;
drift is what the fused model does to ordinary captions. Statistics are recorded once per way of collecting and reused
for every objective (progressive and sequential ones depend on the solution and are made anew). `--passes` adds the
independent way refined by recording again, pass by pass, `--distill 100 300` the default, sequential one after so many
steps of distilling.

`--groups` tells where E comes from: by stage, E of a concept's own model in which that stage alone is the fused one.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mixshow.config.fuse import FuseOptions
from mixshow.core.progress import log
from mixshow.evaluation.page import markdown_table
from mixshow.formats import read_concept
from mixshow.fusion.baselines import weight_average, weighted_sum
from mixshow.fusion.collect import PUBLISHED, Collection
from mixshow.fusion.distill import distill
from mixshow.fusion.fuse import fuse, record_stage
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.heldout import HeldOut
from mixshow.fusion.layers import Stage, layers_of, put_in_place
from mixshow.fusion.lessons import DistillPlan
from mixshow.fusion.members import Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.prompts import CAPTIONS, PICTURES, TEXT
from mixshow.fusion.rerecord import rerecord
from mixshow.fusion.solvers import Exact
from mixshow.models import Base, load_base

DEFAULT = "independent, all rows and prompts"
COLLECTIONS = {
    "sequential": Collection(sequential=True),
    "sequential, 48 points": Collection(sequential=True, points=48),
    "sequential, 24 points": Collection(sequential=True, points=24),
    "sequential, 192 points": Collection(sequential=True, points=192),
    "progressive, published rows and prompts": PUBLISHED,
    "progressive, all rows and prompts": Collection(progressive=True),
    "independent, published rows and prompts": replace(PUBLISHED, progressive=False),
    "independent, concept rows, all prompts": Collection(every_position=False),
    DEFAULT: Collection(),
    "independent, all rows, half of the prompts": Collection(text_prompts=TEXT[::2], picture_prompts=PICTURES[::2]),
    "independent, all rows, pictures of all text prompts": Collection(picture_prompts=TEXT),
    "independent, 20 steps": Collection(steps=20),
    "independent, rows by sensitivity": Collection(sensitive=True),
    "independent, 20 steps, rows by sensitivity": Collection(steps=20, sensitive=True),
}
SOLVERS = dict.fromkeys(Stage, Exact())


def solved(base: Base, members: Sequence[Member], given: argparse.Namespace) -> Iterator[tuple[str, Fusion]]:
    """Every way of fusing that solves, with its name."""
    for name in given.collections:
        collection, recorded = COLLECTIONS[name], None
        if not collection.progressive and not collection.sequential:
            with_anchor = Objective(anchor_weight=1.0, captions=CAPTIONS)
            recorded = {
                stage: record_stage(base, members, stage, collection, with_anchor, show_progress=True)
                for stage in Stage
            }
        wanted = itertools.product(given.ridges, given.anchors, given.shrinkages, given.normalise)
        for ridge, anchor, shrinkage, normalise in wanted:
            objective = Objective(ridge, anchor, CAPTIONS, shrinkage=shrinkage, normalise=normalise)
            fusion = fuse(base, members, collection, objective, SOLVERS, recorded=recorded)
            more = "" if normalise == "none" else f", normalised by {normalise}"
            more += f", shrinkage {shrinkage:g}" if shrinkage else ""
            yield f"{name}, ridge {ridge:g}, anchor {anchor:g}{more}", fusion


def refined(base: Base, members: Sequence[Member], given: argparse.Namespace) -> Iterator[tuple[str, Fusion]]:
    """The default way of fusing, refined."""
    if not given.passes and not given.distill:
        return
    defaults = FuseOptions(base="", concepts=[], output=Path())
    objective = Objective(defaults.solver.ridge, defaults.anchor.weight, CAPTIONS)
    if given.passes:
        again = fuse(base, members, Collection(), objective, SOLVERS, show_progress=True)
    for number in range(1, given.passes + 1):
        again = rerecord(base, members, again, Collection(), objective, SOLVERS, passes=1, show_progress=True)
        yield f"{DEFAULT}, recorded again {number} times", again
    if given.distill:
        start = fuse(base, members, Collection(sequential=True), objective, SOLVERS, show_progress=True)
    for count in given.distill:
        plan = DistillPlan(count, defaults.refine.rate)
        yield f"default, {count} steps of distilling", distill(base, members, start, plan, show_progress=True)


def group_errors(base: Base, members: Sequence[Member], fusion: Fusion, held_out: HeldOut) -> dict[Stage, float]:
    """Mean E where one stage is the fused one and the others are the concept's own."""
    modules = {layer.path: layer.module for layer in layers_of(base).values()}
    found: dict[Stage, list[float]] = {stage: [] for stage in Stage}
    stages = {layer.path: layer.stage for layer in layers_of(base).values()}
    for stage, member in itertools.product(Stage, members):
        changes = {path: change for path, change in fusion.changes.items() if stages[path] is stage}
        others = [other for other in Stage if other is not stage]
        with member.in_place(base, others) as own, put_in_place(modules, changes):
            found[stage].append(held_out.error(member.concept.text, own))
    return {stage: statistics.mean(errors) for stage, errors in found.items()}


def row(
    base: Base, members: Sequence[Member], name: str, fusion: Fusion, held_out: HeldOut, groups: bool
) -> dict[str, float | str]:
    """What is printed of one way."""
    with fusion.in_place(base) as fused:
        scores = held_out.score(fused)
    found: dict[str, float | str] = {"fused by": name, "mean E": statistics.mean(scores.errors.values())}
    if groups:
        by_stage = group_errors(base, members, fusion, held_out)
        found |= {f"{stage.value} alone": error for stage, error in by_stage.items()}
    found |= {**scores.errors, "drift": scores.drift}
    log.info("%s: mean E %.3f, drift %.3f", name, found["mean E"], scores.drift)
    return found


def as_text(values: Mapping[str, float | str], average: Mapping[str, float | str]) -> list[str]:
    """A row of the table, with ratios to averaging."""
    shown = []
    for key, value in values.items():
        if isinstance(value, str):
            shown.append(value)
            continue
        ratio = f" ({value / float(average[key]):.2f})" if key in ("mean E", "drift") else ""
        shown.append(f"{value:.3f}{ratio}")
    return shown


def main() -> None:
    """Print the table, ratios to averaging in brackets, best mean E last."""
    parser = argparse.ArgumentParser(description="held-out errors of many ways of fusing")
    parser.add_argument("base", help="'puppets', a diffusers folder or a hub id")
    parser.add_argument("concepts", nargs="+", type=Path, help="concept files")
    parser.add_argument("--collections", nargs="*", choices=list(COLLECTIONS), default=list(COLLECTIONS))
    parser.add_argument("--ridges", nargs="+", type=float, default=(1e-6, 1e-4, 1e-3, 1e-2, 1e-1))
    parser.add_argument("--anchors", nargs="+", type=float, default=(0.0, 0.3, 1.0))
    parser.add_argument("--shrinkages", nargs="+", type=float, default=(0.0,))
    parser.add_argument("--normalise", nargs="+", choices=("none", "inputs", "changes"), default=("none",))
    parser.add_argument("--passes", type=int, default=0, help="of recording again")
    parser.add_argument("--distill", nargs="*", type=int, default=[], metavar="STEPS")
    parser.add_argument("--groups", action="store_true", help="E by group of layers too")
    given = parser.parse_args()
    base = load_base(given.base)
    members = [Member(read_concept(path)) for path in given.concepts]
    held_out = HeldOut(base, members, show_progress=True)
    measured = partial(row, base, members, held_out=held_out, groups=given.groups)
    average = measured("average of changes", weight_average(base, members))
    rows = [average, measured("sum of changes", weighted_sum(base, members))]
    for name, fusion in itertools.chain(solved(base, members, given), refined(base, members, given)):
        rows.append(measured(name, fusion))
    rows.sort(key=lambda each: -float(each["mean E"]))
    print(markdown_table(list(average), [as_text(each, average) for each in rows]))


if __name__ == "__main__":
    main()
