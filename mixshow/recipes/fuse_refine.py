"""`refine:` of `mixshow fuse`: improve the solved model as a whole, and stop by prompts that are for this alone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mixshow.config.fuse import FuseOptions
from mixshow.fusion.collect import Collection
from mixshow.fusion.distill import distill
from mixshow.fusion.factors import Factors, as_low_rank, loss_report
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.heldout import HeldOut, HeldOutPlan
from mixshow.fusion.layers import Stage
from mixshow.fusion.lessons import DistillPlan
from mixshow.fusion.members import Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.prompts import ORDINARY, TEXT, VALIDATION, VALIDATION_CAPTIONS
from mixshow.fusion.rerecord import rerecord
from mixshow.fusion.solvers import Solver
from mixshow.fusion.stopping import EarlyStopping
from mixshow.models import Base
from mixshow.recipes.fuse_output import tell_loss
from mixshow.recipes.fuse_work import distill_checkpoints

_SEED = 2  # of the validation pictures' start noise


Cut = tuple[Fusion, dict[str, Factors]]


def cut_to_factors(base: Base, members: Sequence[Member], fusion: Fusion, options: FuseOptions) -> Cut:
    """The fusion within the ranks that the options allow, without metrics, and its factors by module path."""
    found = as_low_rank(base, members, fusion, rank=options.lora.rank, energy=options.lora.energy)
    tell_loss(loss_report(found[1]))
    return found


def refined(
    base: Base,
    members: Sequence[Member],
    fusion: Fusion,
    options: FuseOptions,
    collection: Collection,
    objective: Objective,
    solvers: Mapping[Stage, Solver],
    *,
    cut: Cut | None = None,
) -> Fusion:
    """The fusion refined as the options say.

    Args:
        collection, objective, solvers: what it was solved with, to solve again.
        cut: the fusion and its factors, to be refined within these.
    """
    if options.refine.method == "none":
        return fusion
    start = time.monotonic()
    factors: dict[str, Factors] | None = None
    about: dict[str, Any] = {}
    if cut is not None:
        fusion, factors = cut
        about = {"cut": loss_report(factors)}
    stopping = _stopping(base, members, options) if options.refine.stops else None
    if options.refine.method == "rerecord":
        found = rerecord(
            base, members, fusion, collection, objective, solvers,
            passes=options.refine.passes, stopping=stopping, show_progress=True,
        )  # fmt: skip
    else:
        plan = distill_plan(options, len(members))
        validation = validation_plan(options) if options.refine.stops else None
        found = distill(
            base, members, fusion, plan, factors=factors, stopping=stopping,
            checkpoints=distill_checkpoints(base, members, options, fusion, plan, validation), show_progress=True,
        )  # fmt: skip
    what = "re-recording" if options.refine.method == "rerecord" else "distilling"
    return dataclasses.replace(
        found,
        seconds={**fusion.seconds, what: time.monotonic() - start},
        refining={**about, **found.refining},
    )


def _stopping(base: Base, members: Sequence[Member], options: FuseOptions) -> EarlyStopping[Any]:
    given = options.refine
    references = HeldOut(base, members, validation_plan(options), show_progress=True)
    return EarlyStopping(references, patience=given.patience, tolerance=given.tolerance)


def validation_plan(options: FuseOptions) -> HeldOutPlan:
    """What refining is stopped by."""
    size = options.statistics
    return HeldOutPlan(
        prompts=options.refine.validation or VALIDATION,
        captions=VALIDATION_CAPTIONS,
        steps=options.report.steps,
        width=size.width,
        height=size.height,
        seed=_SEED,
    )


def distill_plan(options: FuseOptions, concepts: int) -> DistillPlan:
    """How long and on what `refine.method: distill` learns from so many concepts."""
    given, size = options.refine, options.statistics
    return DistillPlan(
        steps=given.steps_of(concepts),
        rate=given.rate,
        batch_size=given.batch_size,
        accumulation=min(given.accumulation, given.batch_size),
        rounds=given.rounds,
        prompts=given.prompts or TEXT,
        captions=options.anchor.captions or ORDINARY,
        width=size.width,
        height=size.height,
        seed=given.seed,
        look_every=given.every,
    )
