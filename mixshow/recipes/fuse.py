"""`mixshow fuse`: read options, check everything, record and solve, measure, write the fused model."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TypeVar

import torch

from mixshow.config.fuse import SOLVING, FuseOptions, load_fuse_options
from mixshow.config.load import to_plain
from mixshow.core.errors import MixshowError, OptionsError, first_line
from mixshow.core.processes import Processes
from mixshow.core.progress import log
from mixshow.fusion.baselines import Plan, merge
from mixshow.fusion.fuse import fuse as fuse_members
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.heldout import HeldOut, HeldOutPlan, HeldOutScores
from mixshow.fusion.layers import Stage
from mixshow.fusion.members import Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.prompts import CAPTIONS, HELD_OUT, HELD_OUT_CAPTIONS, PUBLISHED_PICTURES
from mixshow.fusion.report import report
from mixshow.fusion.solvers import CG, LBFGS, Constrained, Exact, Sampled, Solver
from mixshow.fusion.subspace import Subspace
from mixshow.models import Base, load_base
from mixshow.models.device import device_named
from mixshow.recipes.fuse_members import collisions, listed_concepts, read_members
from mixshow.recipes.fuse_memory import check_memory_of_distilling, points_that_fit
from mixshow.recipes.fuse_output import check_format, formatted, output_problems, write_fused
from mixshow.recipes.fuse_refine import cut_to_factors, refined
from mixshow.recipes.fuse_statistics import FusionStatistics, gather_statistics
from mixshow.recipes.fuse_work import remove_work_folder, solved_layers
from mixshow.recipes.statistics import collection_for, steps_problem

T = TypeVar("T")


def fuse(path: Path | str, overrides: Sequence[str] = ()) -> Path:
    """Fuse concepts into one model; returns its folder or file.

    Of several processes (`accelerate launch -m mixshow fuse`) all record and solve, the main one refines and writes.

    Args:
        path: an options file.
        overrides: `key=value` texts that replace its options.

    Raises:
        OptionsError: everything wrong with the options and the files they name, together.
        MixshowError: the result cannot be written; nothing is left behind then.
    """
    return fuse_options(load_fuse_options(path, overrides), str(path))


def fuse_options(options: FuseOptions, source: str, known: AbstractSet[Path] = frozenset()) -> Path:
    """The same, of options at hand.

    Args:
        source: names them in messages.
        known: files of statistics whose numbers were checked before.
    """
    started = time.monotonic()
    processes = Processes.launched()
    base, members, options = prepare(options, source)
    options = with_points(options, min(processes.gathered(collection_for(options).points)))
    if processes.main:  # which distills
        check_memory_of_distilling(base, members, options)
    loaded = time.monotonic()
    statistics = gather_statistics(base, members, options, source, processes, known)
    solved = _solved(base, members, options, statistics, processes)
    processes.part_ways()
    if not processes.main:
        return options.output
    cut = cut_to_factors(base, members, solved, options) if options.distills_factors else None
    if cut is not None:
        solved = dataclasses.replace(solved, metrics={})  # every S, which nothing else needs while it is distilled
    final = refined(base, members, solved, options, collection_for(options), *problem_of(options), cut=cut)
    final.check_numbers()  # before a model that is there is replaced
    fusion, factors = formatted(base, members, final, options)
    start = time.monotonic()
    held_out = _held_out(base, members, {"solved": solved, "fused": fusion}, options)
    seconds = {"loading": loaded - started, **fusion.seconds, "held out": time.monotonic() - start}
    kept = statistics if options.statistics.keep else None
    resolved = options if kept is None else kept.named_in(options)
    about = report(base, members, fusion, held_out=held_out, seconds=seconds, options=to_plain(resolved))
    write_fused(base, members, fusion, factors, about, options, files={} if kept is None else kept.to_keep())
    remove_work_folder(options)
    _tell(options.output, about["advice"], held_out)
    return options.output


def prepare(options: FuseOptions, source: str) -> tuple[Base, list[Member], FuseOptions]:
    """Load and check the base and all concepts, naming all problems at once; the options list all concepts then."""
    problems: list[str] = []

    def attempt(what: str, action: Callable[[], T]) -> T | None:
        try:
            return action()
        except MixshowError as error:
            problems.extend(f"{what}: {line}" for line in str(error).splitlines())
            return None

    base = attempt("base", lambda: load_base(options.base, vae=options.vae, device=device_named(options.device)))
    options = dataclasses.replace(options, concepts=listed_concepts(options, attempt))
    members = read_members(options, base, attempt)
    problems += collisions(members)
    if base is not None:
        for i, member in members.items():
            attempt(f"concepts[{i}]", lambda member=member: check_format(base, member, options))  # type: ignore[misc]
        problems += [
            f"{name}: {problem}"
            for name, steps in (("statistics.steps", options.statistics.steps), ("report.steps", options.report.steps))
            if (problem := steps_problem(base, steps))
        ]
        points = attempt("statistics", lambda: points_that_fit(base, list(members.values()), options))
        if options.statistics.points is None:
            options = with_points(options, points)
    problems += output_problems(base, options)
    if problems or base is None:
        raise OptionsError(source, problems)
    return base, list(members.values()), options


def with_points(options: FuseOptions, points: int | None) -> FuseOptions:
    """Options that name how many points layers are solved on in sequence; every process must name as many."""
    return dataclasses.replace(options, statistics=dataclasses.replace(options.statistics, points=points))


def _solved(
    base: Base,
    members: Sequence[Member],
    options: FuseOptions,
    statistics: FusionStatistics | None,
    processes: Processes,
) -> Fusion:
    """The fusion before refining, by least squares or by a method to compare with."""
    if options.method not in SOLVING:
        start, given = time.monotonic(), options.merge
        try:
            fusion = merge(base, members, options.method, Plan(given.rank, given.density, given.seed))
        except torch.linalg.LinAlgError as error:
            raise MixshowError(
                f"method: {options.method} cannot factorise a concept's change ({first_line(error)}); lower its alpha"
            ) from error
        return dataclasses.replace(fusion, seconds={"merging": time.monotonic() - start})
    problem = collection_for(options), *problem_of(options)
    fusion = fuse_members(
        base, members, *problem,
        recorded=None if statistics is None else statistics.recorded,
        solutions=None if statistics is None else solved_layers(base, members, options, statistics.key, *problem),
        keep_metrics=options.keeps_metrics,
        processes=processes, show_progress=processes.main,
    )  # fmt: skip
    if statistics is None:
        return fusion
    return dataclasses.replace(fusion, seconds={"recording": statistics.seconds, **fusion.seconds})


def problem_of(options: FuseOptions) -> tuple[Objective, dict[Stage, Solver]]:
    """What is minimised in every layer, and by what."""
    objective, solvers = objective_of(options), _solvers(options)
    if options.method == "subspace":
        return dataclasses.replace(objective, anchor_weight=0.0), dict.fromkeys(Stage, Subspace())
    if options.method == "constrained":
        prompts = options.merge.prompts or PUBLISHED_PICTURES
        return dataclasses.replace(objective, constraint_prompts=prompts), {**solvers, Stage.KEY_VALUE: Constrained()}
    return objective, solvers


def objective_of(options: FuseOptions) -> Objective:
    return Objective(
        ridge=options.solver.ridge,
        anchor_weight=options.anchor.weight,
        captions=options.anchor.captions or CAPTIONS,
        weights_by_rows=options.statistics.weights == "rows",
        shrinkage=options.statistics.shrinkage,
        normalise=options.statistics.normalise,
    )


def _solvers(options: FuseOptions) -> dict[Stage, Solver]:
    given = options.solver
    if given.name == "exact":
        return dict.fromkeys(Stage, Exact())

    def iterative(iterations: int) -> Solver:
        if given.name == "cg":
            return CG(iterations)
        lbfgs = LBFGS(iterations, precondition=given.precondition)
        if given.objective == "squares":
            return lbfgs
        return Sampled(given.objective, given.huber_delta, lbfgs, iterations)

    solvers = dict.fromkeys(Stage, iterative(given.iterations))
    return {**solvers, Stage.SPATIAL: iterative(given.spatial_iterations or given.iterations)}


def heldout_plan(options: FuseOptions) -> HeldOutPlan:
    """What the report measures on."""
    return HeldOutPlan(
        prompts=options.report.prompts or HELD_OUT,
        captions=options.report.captions or HELD_OUT_CAPTIONS,
        steps=options.report.steps,
        width=options.statistics.width,
        height=options.statistics.height,
        seed=options.report.seed,
    )


def _held_out(
    base: Base, members: Sequence[Member], fusions: Mapping[str, Fusion], options: FuseOptions
) -> dict[str, HeldOutScores]:
    """Scores by the name of the fusion; nothing where the report is not wanted."""
    if not options.report.heldout:
        return {}
    references = HeldOut(base, members, heldout_plan(options), show_progress=True)
    scores: dict[int, HeldOutScores] = {}  # without refining both are the same
    for fusion in fusions.values():
        if id(fusion) not in scores:
            fused, attachment = fusion.attach(base)
            with attachment:
                scores[id(fusion)] = references.score(fused)
    return {name: scores[id(fusion)] for name, fusion in fusions.items()}


def _tell(folder: Path, advice: Sequence[str], held_out: Mapping[str, HeldOutScores]) -> None:
    if held_out:
        fused = held_out["fused"]
        for concept, error in fused.errors.items():
            log.info("%s: held-out error %.2f (0: its own model, 1: the base)", concept, error)
        log.info("drift of the base on ordinary captions: %.3f", fused.drift)
    for text in advice:
        log.info("%s", text)
    log.info("fused model: %s", folder)
