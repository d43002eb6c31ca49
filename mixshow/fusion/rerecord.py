"""Solving again on what layers read in the fused model itself.

A layer of the fused model does not read what it read in a concept's own model, because the layers before it were fused
too. Each pass records every layer's inputs again, on each concept's prompts with the fused weights and all tokens in
place, and solves the same problem on them:

    minimise over D:  sum_i w_i || (D - D_i) Z_i^T ||^2 / n_i  +  mu || D Z_b^T ||^2 / n_b  +  lambda ||D||^2

with Z_i the fused model's inputs on concept i's prompts, Z_b those on ordinary captions. What is wanted is what the
concept's own *layer* makes of these inputs (RegMean++, arXiv 2508.03121), not what its own model had at that place as
in IterIS (arXiv 2411.15231), so that second moments suffice. As in RegMean++ a stage reads through the stages that
were solved before it in the same pass.

Passes are a fixed-point iteration that nothing makes converge: the best one on validation prompts is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from mixshow.fusion.collect import Collection
from mixshow.fusion.fuse import keep_inputs, record_stage, solve_stage
from mixshow.fusion.fusion import FormedChanges, Fusion, parts_of
from mixshow.fusion.layers import Stage
from mixshow.fusion.members import Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.solvers import Solver
from mixshow.fusion.stopping import EarlyStopping
from mixshow.models import Base


def rerecord(
    base: Base,
    members: Sequence[Member],
    fusion: Fusion,
    collection: Collection,
    objective: Objective,
    solvers: Mapping[Stage, Solver],
    *,
    passes: int = 4,
    stopping: EarlyStopping[Fusion] | None = None,
    show_progress: bool = False,
) -> Fusion:
    """Refine a fusion. The base is unchanged afterwards.

    Args:
        fusion: where to start; its metrics, if any, are kept up to date.
        passes: at most.
        stopping: ends earlier and chooses the pass, the start included; None: the last pass is the result.

    Returns:
        A fusion with the outcomes of its own pass, whose residuals are on the inputs of that pass.
    """
    if stopping is not None:
        _look(base, fusion, 0, stopping)
    for number in range(1, passes + 1):
        fusion = _pass(base, members, fusion, collection, objective, solvers, show_progress)
        if stopping is not None and _look(base, fusion, number, stopping):
            break
    if stopping is None:
        return fusion
    assert stopping.best is not None
    return dataclasses.replace(stopping.best[1], refining=stopping.to_json())


def _look(base: Base, fusion: Fusion, number: int, stopping: EarlyStopping[Fusion]) -> bool:
    with fusion.in_place(base) as fused:
        return stopping.look(fused, number, lambda: fusion)


def _pass(
    base: Base,
    members: Sequence[Member],
    fusion: Fusion,
    collection: Collection,
    objective: Objective,
    solvers: Mapping[Stage, Solver],
    show_progress: bool,
) -> Fusion:
    for stage in Stage:
        deltas = [member.changes(base, [stage]) for member in members]
        if not any(deltas):
            continue
        recorded = record_stage(
            base, members, stage, collection, objective, through=fusion, show_progress=show_progress
        )
        kept = keep_inputs(base, members, stage, collection, objective, through=fusion, show_progress=show_progress)
        found = solve_stage(
            base, members, deltas, recorded, objective, solvers[stage], kept,
            keep_metrics=bool(fusion.metrics), what=stage.value if show_progress else "",
        )  # fmt: skip
        outcomes = {each.outcome.name: each.outcome for each in found}
        before = {name: parts_of(fusion.changes, name) for name in fusion.changes if name not in outcomes}
        fusion = dataclasses.replace(
            fusion,
            changes=FormedChanges({**before, **{name: outcome.parts for name, outcome in outcomes.items()}}),
            outcomes={**fusion.outcomes, **outcomes},
            metrics={**fusion.metrics, **{each.outcome.name: each.metric for each in found if each.metric is not None}},
        )
    return fusion
