"""`mixshow fuse OPTIONS --dry-run`: what a fusion would do, the memory and the time it would take; writes nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch

from mixshow.config.fuse import SOLVING, FuseOptions, load_fuse_options
from mixshow.core.processes import Processes
from mixshow.edlora.layerwise import layerwise_states
from mixshow.evaluation.page import markdown_table
from mixshow.fusion import cost
from mixshow.fusion.cost import Passes
from mixshow.fusion.distinct_inputs import distinct_inputs
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.memory import DISTILLING, metric_bytes
from mixshow.fusion.own_and_fused import UNET
from mixshow.models import Base, prompt_states
from mixshow.models.prompts import text_states
from mixshow.recipes.fuse import heldout_plan, prepare, problem_of
from mixshow.recipes.fuse_memory import memory_needed, memory_of_distilling, ranks_kept
from mixshow.recipes.fuse_refine import distill_plan, validation_plan
from mixshow.recipes.fuse_statistics import statistics_at_hand
from mixshow.recipes.statistics import collection_for
from mixshow.sampling.generate import latent_size, start_noise

_SQUARE = 512  # of the products that the machine's speed in double precision is taken from


@dataclasses.dataclass(frozen=True)
class Speed:
    """What this machine takes, in seconds: a text, a picture at one noise level, an operation in double precision."""

    text: float
    unet: float
    operation: float

    def of(self, passes: Passes) -> float:
        return passes.text * self.text + passes.unet * self.unet


@dataclasses.dataclass(frozen=True)
class Part:
    """A line of the plan."""

    name: str
    layers: int
    passes: Passes
    seconds: float


@dataclasses.dataclass(frozen=True)
class FusionPlan:
    """What a fusion would do.

    Attributes:
        layers: by stage, for each concept how many of its layers change.
        memory: bytes beside the model, by what they are needed for.
    """

    parts: Sequence[Part]
    layers: dict[Stage, list[int]]
    memory: dict[str, int]

    @property
    def seconds(self) -> float:
        """To expect, besides loading and writing."""
        return sum(part.seconds for part in self.parts)


def plan_text(path: Path | str, overrides: Sequence[str] = ()) -> str:
    """The plan of an options file, as text.

    Raises:
        OptionsError: everything wrong with the options and the files they name, as fusing would say.
    """
    options = load_fuse_options(path, overrides)
    base, members, options = prepare(options, str(path))
    at_hand = statistics_at_hand(base, members, options, str(path))
    made = make_plan(base, members, options, measured_speed(base, options), at_hand)
    return described(made, members, options)


def make_plan(
    base: Base, members: Sequence[Member], options: FuseOptions, speed: Speed, at_hand: Collection[str] = ()
) -> FusionPlan:
    """What fusing these members would do.

    Args:
        at_hand: statistics that need not be recorded, by the option that names them.
    """
    layers = {stage: changed_layers(base, members, stage) for stage in Stage}
    layers = {stage: own for stage, own in layers.items() if own}
    parts: list[Part] = []
    memory: dict[str, int] = {}
    if options.method in SOLVING:
        parts += _solving_parts(base, members, options, speed, layers, at_hand)
        memory = _memory(base, members, options, [layer for own in layers.values() for layer in own], at_hand)
    else:
        parts.append(Part(f"merging by {options.method}", sum(map(len, layers.values())), Passes(), 0.0))
    own = [layer for stage in UNET for layer in layers.get(stage, [])]
    refining = options.refine.method != "none" and (bool(own) or options.refine.method != "distill")
    if refining:
        again = options.refine.method == "rerecord"
        once = _solving_parts(base, members, options, speed, layers) if again else []
        parts.append(_refining(members, options, speed, layers, once))
        memory |= {} if again else {DISTILLING: memory_of_distilling(base, members, options, own)}
    if options.report.heldout:
        passes = cost.heldout_passes(heldout_plan(options), len(members), 1 + refining)
        parts.append(Part("held-out report", 0, passes, speed.of(passes)))
    counts = {stage: [len(member.changes(base, [stage])) for member in members] for stage in layers}
    return FusionPlan(parts, counts, memory)


def _refining(
    members: Sequence[Member],
    options: FuseOptions,
    speed: Speed,
    layers: dict[Stage, list[Layer]],
    once: Sequence[Part],
) -> Part:
    """All steps or passes, where it does not stop earlier.

    Args:
        once: what recording and solving once takes.
    """
    given, seconds = options.refine, 0.0
    if given.method == "distill":
        plan = distill_plan(options, len(members))
        passes = cost.distilling_passes(plan, len(members))
        count = sum(len(own) for stage, own in layers.items() if stage is not Stage.TEXT)
        looks = 1 + -(-plan.steps // plan.look_every)
    else:
        passes = sum((part.passes for part in once), cost.Passes()) * given.passes
        count, looks = sum(map(len, layers.values())), 1 + given.passes
        seconds = given.passes * sum(part.seconds for part in once if part.passes == Passes())
    if given.stops:
        passes += cost.heldout_passes(validation_plan(options), len(members), looks)
    name = "distilling" if given.method == "distill" else "recording and solving again"
    return Part(name, count, passes, seconds + speed.of(passes))


def _solving_parts(
    base: Base,
    members: Sequence[Member],
    options: FuseOptions,
    speed: Speed,
    layers: dict[Stage, list[Layer]],
    at_hand: Collection[str] = (),
) -> list[Part]:
    """Recording and solving by stage."""
    objective, collection = problem_of(options)[0], collection_for(options)
    captions = len(objective.captions) if objective.anchor_weight > 0 else 0
    sets, ranks = len(members) + bool(captions), sum(_rank(member) for member in members)
    waiting = len(members) - len(set(at_hand) - {"anchor"}), 0 if "anchor" in at_hand else captions
    sampled = len(members) if collection.rows else 0  # in a pass of their own, whatever is at hand
    in_order = [layer for own in layers.values() for layer in own if collection.solves_in_order(layer)]
    apart = {
        stage: rest for stage, own in layers.items() if (rest := [layer for layer in own if layer not in in_order])
    }
    recorded = layers if options.statistics.keep else apart
    parts = [
        Part(f"{what} {stage.value}", len(recorded[stage]), passes, speed.of(passes))
        for what, counts in (("recording", waiting), ("keeping rows of", (sampled, 0)))
        for stage, passes in cost.recording_passes(collection, recorded.keys(), *counts, base.topology.layers).items()
        if passes != Passes()
    ]
    for stage, own in apart.items():
        operations = cost.solving_operations(distinct_inputs(own, collection), collection, ranks, sets)
        parts.append(Part(f"solving {stage.value}", len(own), Passes(), speed.operation * operations))
    if in_order:
        passes = cost.sequential_passes(collection, len(members), captions, base.topology.layers)
        operations = cost.solving_operations(distinct_inputs(in_order, collection), collection, ranks, sets)
        seconds = speed.of(passes) + speed.operation * operations
        parts.append(Part("solving layers in order", len(in_order), passes, seconds))
    return parts


def _memory(
    base: Base, members: Sequence[Member], options: FuseOptions, layers: Sequence[Layer], at_hand: Collection[str]
) -> dict[str, int]:
    """Memory, and what waits on the disk until the run ends."""
    collection = collection_for(options)
    stored = layers if options.statistics.keep else [own for own in layers if not collection.solves_in_order(own)]
    sets = len(members) + (problem_of(options)[0].anchor_weight > 0)
    found = memory_needed(base, members, options, layers, recording=len(at_hand) < sets)
    if not collection.progressive:
        waiting = cost.stored_bytes(distinct_inputs(stored, collection), collection, sets - len(at_hand))
        waiting += cost.solved_bytes(layers, ranks_kept(base, members, options))
        if options.keeps_metrics:  # layers that are solved in order have files of their own
            apart = [layer for layer in layers if not collection.solves_in_order(layer)]
            groups = [apart, *([layer] for layer in layers if collection.solves_in_order(layer))]
            waiting += sum(metric_bytes(distinct_inputs(group, collection), collection) for group in groups)
        found["statistics and solved layers on the disk"] = waiting
    return found


def _rank(member: Member) -> int:
    """Largest number of rows or columns that a tensor of its network has least of: the rank, of low-rank networks."""
    return max((min(t.flatten(1).shape) for t in member.concept.network.values() if t.dim() > 1), default=0)


def measured_speed(base: Base, options: FuseOptions) -> Speed:
    """From one text, one pass of the UNet at the options' size and one product, each after a first one."""
    size = options.statistics
    height, width = latent_size(base, size.width, size.height)
    square = torch.randn(_SQUARE, _SQUARE, dtype=torch.float64, device=base.device)
    with torch.no_grad(), layerwise_states(base.unet):
        states = prompt_states(base, [""])
        latents = start_noise(base, [0], height, width)
        return Speed(
            _seconds(base, lambda: text_states(base, [""])),
            _seconds(base, lambda: base.unet(latents, 1, **states.for_unet(latents))),
            _seconds(base, lambda: square @ square) / (2 * _SQUARE**3),
        )


def _seconds(base: Base, do: Callable[[], object]) -> float:
    for _ in range(2):
        if base.device.type == "cuda":
            torch.cuda.synchronize(base.device)
        start = time.perf_counter()
        do()
        if base.device.type == "cuda":
            torch.cuda.synchronize(base.device)
        seconds = time.perf_counter() - start
    return seconds


def described(made: FusionPlan, members: Sequence[Member], options: FuseOptions) -> str:
    """The plan for people."""
    names = [member.concept.text for member in members]
    collection, objective = collection_for(options), problem_of(options)[0]
    layers = [
        [name, *(counts[i] for counts in made.layers.values()), members[i].weight] for i, name in enumerate(names)
    ]
    rows = [
        [part.name, part.layers or "-", part.passes.text or "-", part.passes.unet or "-", _duration(part.seconds)]
        for part in made.parts
    ]
    processes = Processes.launched().count
    lines = [
        f"{len(names)} concepts onto {options.base}, to {options.output} ({options.format}); nothing is written now",
        markdown_table(["changed layers of", *(stage.value for stage in made.layers), "weight"], layers),
    ]
    if options.method in SOLVING:
        lines.append(
            f"recorded ({options.collects}) on {len(collection.text_prompts)} prompts for text, "
            f"{len(collection.picture_prompts)} pictures of {collection.steps} steps for each concept"
            + (f", and {len(objective.captions)} captions" if objective.anchor_weight > 0 else "")
        )
    lines.append(markdown_table(["part", "layers", "texts", "UNet passes", "time"], rows))
    if made.memory:
        needs = ", ".join(f"{what} {size / 1e9:.2f} GB" for what, size in made.memory.items())
        lines.append(f"memory beside the model: {needs}")
    shared = f" on one process; {processes} share recording and solving" if processes > 1 else ""
    lines.append(f"time to expect: {_duration(made.seconds)}{shared}, besides loading and writing")
    return "\n\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
