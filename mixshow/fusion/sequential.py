"""Solving the UNet's layers one after another, in the order in which they run, each for what is lacking there by then.

Solved apart, every layer does well on what concepts' own models read, and what it misses adds up on the way through
the fused model. Here each concept's own model and the fused one run side by side on the same pictures, and wait at
every layer. What the fused model reads there, z, is known by then, since all layers before are solved; and so is what
its output lacks, e = y_own - W_0 z, with y_own the output in the concept's own model. The layer is solved for that:

    minimise over D:  sum_i w_i E |D z - e|^2  +  mu E_b |D z - e|^2  +  lambda ||D||^2

so that it makes up for what the layers before it missed. Where an output is added to a residual stream, e is what the
stream lacks after it. Ordinary captions (b) want what the base has. All in one pass without gradients, from a few
points of few pictures. Wanting the own model's outputs for the fused model's inputs is what IterIS (arXiv 2411.15231)
does in rounds over all layers at once, and what GPTAQ (arXiv 2504.02692) does for quantised weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mixshow.core.processes import Processes
from mixshow.core.progress import progress_bar
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion.build import build_problems
from mixshow.fusion.collect import Collection
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.inputs import Inputs
from mixshow.fusion.layers import Layer, changed_output
from mixshow.fusion.lockstep import Waiting, lockstep
from mixshow.fusion.members import Changes, Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.own_and_fused import UNET, Pass, passes_of, told_apart
from mixshow.fusion.paired import PairedProblem, Pairs, RunningPairs
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.recorder import Reading, geometry_of
from mixshow.fusion.solved_layers import Solved, SolvedLayers
from mixshow.fusion.solvers import Solver
from mixshow.fusion.statistics import LayerStatistics, input_width, is_elementwise
from mixshow.fusion.thin import basis_of
from mixshow.lycoris.carrier import own_weight
from mixshow.models import Base
from mixshow.models.topology import residual_streams


@torch.no_grad()
def solved_in_order(
    base: Base,
    members: Sequence[Member],
    fused: Fusion,
    layers: Sequence[Layer],
    collection: Collection,
    objective: Objective,
    solver: Solver,
    *,
    keep_metrics: bool = False,
    processes: Processes | None = None,
    known: Mapping[str, Solved] | None = None,
    solutions: SolvedLayers | None = None,
    show_progress: bool = False,
) -> list[Solved]:
    """The solutions of the UNet's layers, in the order in which they run.

    Args:
        fused: what is fused already: text encoder, keys and values, and layers that are not solved in order.
        layers: to solve; those that no pass comes to are left out.
        keep_metrics: give every layer's S too.
        processes: that run some of the pictures each; all of them have all solutions.
        known: solutions by module path, of layers that are not solved again where all processes know them.
        solutions: where what is solved is put.

    Raises:
        MixshowError: see `build_problems`.
    """
    processes = processes or Processes.alone()
    passes = passes_of(base, members, fused, collection, objective, processes, show_progress)
    deltas = [member.changes(base, UNET) for member in members]
    wanted = {layer.path: layer for layer in layers}
    solving = _Solving(base, members, deltas, objective, solver, keep_metrics, processes)
    found: dict[str, Solved] = {}
    shared = set.intersection(*processes.gathered(set(known or {})))
    known = {path: each for path, each in (known or {}).items() if path in shared}
    modules = {path: layer.module for path, layer in wanted.items()}
    with (
        told_apart(base, wanted, deltas, fused.changes),
        layerwise_states(base.unet),
        progress_bar(len(layers), "solving layers in order", enabled=show_progress) as bar,
    ):
        steps = lockstep(modules, [partial(each.run, base.unet) for each in passes])
        with contextlib.closing(steps):
            for path, waiting in _agreed(steps, processes):
                layer = wanted[path]
                solving.add_own_changes(layer, passes, waiting)
                if path not in found:  # else it runs more than once
                    found[path] = known.get(path) or solving.solved(layer, passes, waiting)
                    if solutions is not None and processes.main and path not in known:
                        solutions.write([found[path]])
                    bar.update()
                fused_change = found[path].outcome.change
                for each in waiting:
                    own, lacking = each.output.chunk(2)
                    added = changed_output(layer.module, each.input.chunk(2)[1], fused_change)
                    each.output = torch.cat([own, lacking + added])
                solving.let_go(layer, passes)
    return list(found.values())


def _agreed(steps: Iterator[tuple[str, list[Waiting]]], processes: Processes) -> Iterator[tuple[str, list[Waiting]]]:
    """The steps of all processes; one without pictures has nothing waiting at them."""
    while True:
        own = next(steps, None)
        name = next((name for name in processes.gathered(None if own is None else own[0]) if name is not None), None)
        if name is None:
            return
        yield name, [] if own is None else own[1]


class _Solving:
    """What layers are solved with; the inputs that the last one read serve the next where it reads the same."""

    def __init__(
        self,
        base: Base,
        members: Sequence[Member],
        deltas: Sequence[Changes],
        objective: Objective,
        solver: Solver,
        keep_metrics: bool,
        processes: Processes,
    ) -> None:
        self._members, self._deltas, self._objective, self._solver = members, deltas, objective, solver
        self._keep_metrics, self._processes = keep_metrics, processes
        self._device, self._streams = base.device, residual_streams(base.unet)
        self._sets = len(members) + (objective.anchor_weight > 0)
        self._read: list[Reading] = []
        self._inputs: tuple[Inputs, list[LayerStatistics]] | None = None

    def add_own_changes(self, layer: Layer, passes: Sequence[Pass], waiting: Sequence[Waiting]) -> None:
        """Make the first half of outputs those of the concepts' own models."""
        changes = [each.get(layer.path) for each in self._deltas]
        for each, own in zip(passes, waiting):
            change = changes[each.number] if each.number < len(changes) else None
            if change is not None:
                output, unchanged = own.output.chunk(2)
                added = changed_output(layer.module, own.input.chunk(2)[0], change)
                own.output = torch.cat([output + added, unchanged])

    def let_go(self, layer: Layer, passes: Sequence[Pass]) -> None:
        """Keep the residual stream no longer that a layer adds to."""
        for own in passes:
            own.streams.pop(self._streams.get(layer.path, ""), None)

    def solved(self, layer: Layer, passes: Sequence[Pass], waiting: Sequence[Waiting]) -> Solved:
        """One layer, by what is waiting at it."""
        geometry = geometry_of(layer.path, layer.module, layer.extended)
        again = bool(waiting) and len(self._read) == len(waiting)
        again = again and all(read.same_as(each.input, geometry) for read, each in zip(self._read, waiting))
        again = self._inputs is not None and all(self._processes.gathered(again or not waiting))
        pairs = self._pairs(layer, passes, waiting, None if not again or self._inputs is None else self._inputs[1])
        self._read = [Reading.of(each.input, geometry) for each in waiting]
        problem = self._problem(layer, [each.inputs for each in pairs])
        if again and self._inputs is not None and self._objective.normalise != "changes":
            problem = dataclasses.replace(problem, inputs=self._inputs[0])
        self._inputs = problem.inputs, [each.inputs for each in pairs]
        basis = basis_of(problem)  # of the concepts' own changed outputs, so that ranks add up
        if basis is not None:
            pairs = [each.within(basis) for each in pairs]
        concepts, anchor = pairs[: len(self._members)], pairs[len(self._members) :]
        paired = PairedProblem(layer.path, problem.inputs, problem.deltas, concepts, anchor[0] if anchor else None)
        outcome = self._solver.solve([paired])[0]
        outcome = dataclasses.replace(outcome, basis=basis, in_order=True)
        return Solved(outcome, problem.inputs.matrix if self._keep_metrics else None)

    def _problem(self, layer: Layer, inputs: Sequence[LayerStatistics]) -> LayerProblem:
        """The layer's least-squares problem on its inputs, with all weights."""
        objective, count = self._objective, len(self._members)
        return build_problems(
            [each.only([layer.path]) for each in self._deltas],
            [{layer.path: each} for each in inputs[:count]],
            weights=None if objective.weights_by_rows else [member.weight for member in self._members],
            anchor={layer.path: inputs[count]} if len(inputs) > count else None,
            anchor_weight=objective.anchor_weight,
            ridge=objective.ridge,
            normalise=objective.normalise,
        )[0]

    def _pairs(
        self,
        layer: Layer,
        passes: Sequence[Pass],
        waiting: Sequence[Waiting],
        known: Sequence[LayerStatistics] | None,
    ) -> list[Pairs]:
        """Of every concept and the anchor, summed up over all processes.

        Args:
            known: their inputs, where these were summed up for the layer before.
        """
        module = layer.module
        width, outputs = input_width(module) + layer.extended, len(own_weight(module))
        shape = (outputs, 1, width) if is_elementwise(module) else (outputs, width)
        sums = [RunningPairs.zeros(shape, self._device) for _ in range(self._sets)]
        for own, each in zip(passes, waiting):
            output, unchanged = each.output.chunk(2)
            lacking = output - unchanged
            stream = own.streams.get(self._streams.get(layer.path, ""))
            if stream is not None:
                before, behind = stream.chunk(2)
                lacking = lacking + _as_output(before - behind, lacking)
            sums[own.number].add(layer, each.input.chunk(2)[1], lacking, moments=known is None)
        for running in sums:
            for tensor in (running.wanted, running.counts, *([running.moment] if known is None else [])):
                self._processes.add(tensor)
        return [each.pairs(None if known is None else known[place]) for place, each in enumerate(sums)]


def _as_output(stream: Tensor, output: Tensor) -> Tensor:
    """A residual stream in the layout of what is added to it: pictures `[batch, channels, ...]`, or rows."""
    return stream if stream.dim() == output.dim() else stream.flatten(2).mT
