"""From a base and concepts to one model: record, solve layer by layer, put the changes in place.

Three stages, by what layers read: the text encoder, keys and values of cross-attention, everything else in the UNet.
Mix-of-Show's gradient fusion (arXiv 2305.18292) is the collection `PUBLISHED` with row weights and no ridge.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from functools import partial

from mixshow.core.processes import Processes
from mixshow.core.progress import progress_bar, tracked
from mixshow.fusion.collect import Collection, Statistics, record
from mixshow.fusion.deltas import Deltas
from mixshow.fusion.fusion import FormedChanges, Fusion
from mixshow.fusion.kept import KeptInputs, sample_rows, token_rows
from mixshow.fusion.layers import Layer, Stage, layers_of, put_in_place
from mixshow.fusion.members import Member, all_embeddings, changed_layers
from mixshow.fusion.objective import Objective
from mixshow.fusion.prompts import filled
from mixshow.fusion.sequential import solved_in_order
from mixshow.fusion.sharing import summed
from mixshow.fusion.solve import solved
from mixshow.fusion.solved_layers import Solved, SolvedLayers
from mixshow.fusion.solvers import Solver
from mixshow.models import Base


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """Statistics of one stage.

    Attributes:
        concepts: one per member.
        anchor: of the base under ordinary captions.
    """

    concepts: Sequence[Statistics]
    anchor: Statistics | None = None


def fuse(
    base: Base,
    members: Sequence[Member],
    collection: Collection,
    objective: Objective,
    solvers: Mapping[Stage, Solver],
    *,
    recorded: Mapping[Stage, Recorded] | None = None,
    solutions: SolvedLayers | None = None,
    keep_metrics: bool = False,
    processes: Processes | None = None,
    show_progress: bool = False,
) -> Fusion:
    """Fuse concepts. The base is unchanged afterwards; `Fusion.attach` puts the result in place.

    Args:
        recorded: statistics at hand (from `record_stage`); stages not there are recorded.
        solutions: of an interrupted run on the same statistics, which are taken; those found now are added.
        keep_metrics: keep every layer's S, to truncate changes in it.
        processes: that share the work; each returns the whole fusion. None: this one does all.

    Raises:
        MixshowError: tokens collide, or a concept was trained on another base.
    """
    modules = {layer.path: layer.module for layer in layers_of(base).values()}
    found: list[Solved] = []
    seconds: dict[str, float] = {}
    for stage in Stage:
        start = time.monotonic()
        apart = [layer.path for layer in recorded_layers(base, members, stage, collection)]
        deltas = [member.changes(base, [stage]).only(apart) for member in members]
        if not any(deltas):
            continue
        stage_statistics = (recorded or {}).get(stage)
        names = {name for each in deltas for name in each}
        known = {} if solutions is None else solutions.read(names, metrics=keep_metrics, device=base.device)
        with put_in_place(modules, _changes(found) if collection.progressive else {}):
            if stage_statistics is None:
                stage_statistics = record_stage(
                    base, members, stage, collection, objective, processes=processes, show_progress=show_progress
                )
            kept = KeptInputs()
            if known.keys() != names:
                kept = keep_inputs(base, members, stage, collection, objective, show_progress=show_progress)
        seconds[f"statistics: {stage.value}"] = time.monotonic() - start
        start = time.monotonic()
        found += solve_stage(
            base, members, deltas, stage_statistics, objective, solvers[stage], kept,
            keep_metrics=keep_metrics, processes=processes, known=known, solutions=solutions,
            what=stage.value if show_progress else "",
        )  # fmt: skip
        seconds[f"solving: {stage.value}"] = time.monotonic() - start
    in_order = [layer for layer in changed_layers(base, members, Stage.SPATIAL) if collection.solves_in_order(layer)]
    if in_order:
        start = time.monotonic()
        names = {layer.path for layer in in_order}
        found += solved_in_order(
            base, members, Fusion(_changes(found), all_embeddings(members)), in_order, collection, objective,
            solvers[Stage.SPATIAL], keep_metrics=keep_metrics, processes=processes,
            known=None if solutions is None else solutions.read(names, metrics=keep_metrics, device=base.device),
            solutions=solutions, show_progress=show_progress,
        )  # fmt: skip
        seconds["solving in order"] = time.monotonic() - start
    outcomes = {each.outcome.name: each.outcome for each in found}
    metrics = {each.outcome.name: each.metric for each in found if each.metric is not None}
    return Fusion(_changes(found), all_embeddings(members), outcomes, seconds, metrics)


def _changes(solved: Sequence[Solved]) -> FormedChanges:
    return FormedChanges({each.outcome.name: each.outcome.parts for each in solved})


def solve_stage(
    base: Base,
    members: Sequence[Member],
    deltas: Sequence[Deltas],
    recorded: Recorded,
    objective: Objective,
    solver: Solver,
    kept: KeptInputs,
    *,
    keep_metrics: bool = False,
    processes: Processes | None = None,
    known: Mapping[str, Solved] | None = None,
    solutions: SolvedLayers | None = None,
    what: str = "",
) -> list[Solved]:
    """The solutions of one stage's layers.

    Args:
        deltas: for each member, its changes of the stage's layers by module path.
        solutions: where what is solved is put.
        keep_metrics, processes, known, what: as for `solved`.
    """
    return solved(
        deltas,
        recorded.concepts,
        recorded.anchor if objective.anchor_weight > 0 else None,
        solver,
        device=base.device,
        keep_metrics=keep_metrics,
        amended=partial(kept.applied, base) if kept.samples or kept.constraints else None,
        weights=None if objective.weights_by_rows else [member.weight for member in members],
        anchor_weight=objective.anchor_weight,
        ridge=objective.ridge,
        shrinkage=objective.shrinkage,
        normalise=objective.normalise,
        processes=processes,
        known=known,
        kept=solutions,
        what=what,
    )


def record_stage(
    base: Base,
    members: Sequence[Member],
    stage: Stage,
    collection: Collection,
    objective: Objective,
    *,
    processes: Processes | None = None,
    through: Fusion | None = None,
    show_progress: bool = False,
) -> Recorded:
    """Statistics of one stage for all members, and for the anchor when the objective has one.

    Args:
        through: a fused model whose inputs are recorded, on ordinary captions too; None: each concept's own model,
            and the base.
        processes: that record some of the prompts each; None: this one records all.
    """
    processes = processes or Processes.alone()

    def recorded(model: Base, number: int, text: Sequence[str], pictures: Sequence[str], words: str = "") -> Statistics:
        own = record(
            model, layers, stage, collection,
            text_prompts=text, picture_prompts=pictures, words=words, every=processes.part(number),
        )  # fmt: skip
        return summed(own, processes, base.device, collection.kept_rows)

    layers = recorded_layers(base, members, stage, collection)
    own_stages = (stage,) if collection.progressive else tuple(Stage)
    concepts = []
    anchored = objective.anchor_weight > 0
    with progress_bar(len(members) + anchored, f"recording {stage.value}", enabled=show_progress) as bar:
        for number, member in enumerate(members):
            name = member.concept.text
            with member.in_place(base, own_stages) if through is None else through.in_place(base) as tuned:
                text, pictures = (filled(each, name) for each in (collection.text_prompts, collection.picture_prompts))
                concepts.append(recorded(tuned, number, text, pictures, member.concept.ordinary_words))
            bar.update()
        anchor = None
        if anchored:
            captions = list(objective.captions)
            with contextlib.nullcontext(base) if through is None else through.in_place(base) as model:
                anchor = recorded(model, len(members), captions, captions)
            bar.update()
    return Recorded(concepts, anchor)


def recorded_layers(base: Base, members: Sequence[Member], stage: Stage, collection: Collection) -> list[Layer]:
    """The layers of a stage that are solved on recorded inputs."""
    layers = changed_layers(base, members, stage)
    return [layer for layer in layers if not collection.solves_in_order(layer)]


def keep_inputs(
    base: Base,
    members: Sequence[Member],
    stage: Stage,
    collection: Collection,
    objective: Objective,
    *,
    through: Fusion | None = None,
    show_progress: bool = False,
) -> KeptInputs:
    """What the problems of one stage need of their inputs beside moments; nothing for plain least squares.

    Args:
        through: as for `record_stage`.
    """
    prompts = objective.constraint_prompts if stage is Stage.KEY_VALUE else ()
    if not prompts and not collection.rows:
        return KeptInputs()
    layers = recorded_layers(base, members, stage, collection)
    own_stages = (stage,) if collection.progressive else tuple(Stage)
    constraints, samples = [], []
    for member in tracked(members, f"keeping inputs of {stage.value}", enabled=show_progress):
        name = member.concept.text
        with member.in_place(base, own_stages) if through is None else through.in_place(base) as tuned:
            if prompts:
                tokens = [token for token in member.concept.embeddings if token in name.split()]
                constraints.append(token_rows(tuned, layers, filled(prompts, name), tokens))
                continue
            samples.append(
                sample_rows(
                    tuned, layers, stage, collection,
                    text_prompts=filled(collection.text_prompts, name),
                    picture_prompts=filled(collection.picture_prompts, name),
                    words=member.concept.ordinary_words,
                )
            )  # fmt: skip
    return KeptInputs(constraints, samples)
