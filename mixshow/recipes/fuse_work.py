"""The work folder of a fusion, beside its output: what an interrupted run leaves and the next one goes on from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mixshow.config.fuse import FuseOptions
from mixshow.core.version import __version__
from mixshow.fusion.collect import Collection
from mixshow.fusion.distill_checkpoint import Checkpoints
from mixshow.fusion.fusion import Fusion, parts_of
from mixshow.fusion.heldout import HeldOutPlan
from mixshow.fusion.layers import Stage
from mixshow.fusion.lessons import DistillPlan
from mixshow.fusion.members import Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.origin import concept_hash
from mixshow.fusion.solved_layers import SolvedLayers, digest
from mixshow.fusion.solvers import Solver
from mixshow.models import Base
from mixshow.models.identity import digits, weights_hash


def work_folder(options: FuseOptions) -> Path:
    """Where statistics, solved layers and the state of distilling wait."""
    return options.output.with_name(f".{options.output.name}.statistics")


def remove_work_folder(options: FuseOptions) -> None:
    """At the end of a run."""
    shutil.rmtree(work_folder(options), ignore_errors=True)


def solved_layers(
    base: Base,
    members: Sequence[Member],
    options: FuseOptions,
    statistics_key: str,
    collection: Collection,
    objective: Objective,
    solvers: Mapping[Stage, Solver],
) -> SolvedLayers:
    """Where layers are kept that were solved from these statistics in this way.

    Args:
        statistics_key: of `FusionStatistics`.
    """
    problem = ([member.weight for member in members], collection, objective, dict(solvers))
    return SolvedLayers(work_folder(options), digest(_program(base), statistics_key, problem))


def distill_checkpoints(
    base: Base,
    members: Sequence[Member],
    options: FuseOptions,
    start: Fusion,
    plan: DistillPlan,
    validation: HeldOutPlan | None,
) -> Checkpoints:
    """Where the state of distilling is kept.

    Args:
        start: what is distilled; every bit of it decides.
        plan: how.
        validation: what it is stopped by; None: by nothing.
    """
    stops = None if validation is None else (validation, options.refine.patience, options.refine.tolerance)
    concepts = [
        (member.concept.text, concept_hash(member.concept), member.alpha, member.text_encoder, member.unet)
        for member in members
    ]
    form = (options.distills_factors, options.lora)
    values = [
        (path, tuple(part.shape), _bits(part)) for path in start.changes for part in parts_of(start.changes, path)
    ]
    return Checkpoints(
        work_folder(options), digest(_program(base), weights_hash(base), concepts, values, form, plan, stops)
    )


def _bits(values: Tensor) -> tuple[str, int]:
    """Some values, and the sum of the bits of all."""
    return digits(values).hex(), int(values.detach().double().flatten().view(torch.int64).sum())


def _program(base: Base) -> tuple[str, str, str]:
    """What results are equal to the bit within."""
    return __version__, str(torch.__version__), base.device.type
