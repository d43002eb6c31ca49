"""Solving the layers of a stage some at a time, so that what is in memory does not grow with concepts and layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixshow.core.processes import Processes
from mixshow.core.progress import progress_bar
from mixshow.fusion.build import build_problems
from mixshow.fusion.deltas import Deltas
from mixshow.fusion.members import Changes
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.reduction import common_span, formed, reduced, whole_metric
from mixshow.fusion.solved_layers import Solved, SolvedLayers
from mixshow.fusion.solvers import Solver
from mixshow.fusion.statistics import LayerInputs
from mixshow.fusion.statistics_file import StoredInputs
from mixshow.fusion.thin import solve_thin
from mixshow.fusion.wide import KeptRows

Inputs = Mapping[str, LayerInputs]
Amendment = Callable[[Sequence[LayerProblem]], list[LayerProblem]]
_BYTES = 1 << 28  # matrices of the layers that are solved together
MATRICES = 5  # of the moment's size that a problem holds beside the concepts' moments


def solved(
    deltas: Sequence[Deltas],
    concepts: Sequence[Inputs],
    anchor: Inputs | None,
    solver: Solver,
    *,
    device: torch.device | str = "cpu",
    keep_metrics: bool = False,
    ridge: float = 0.0,
    shrinkage: float = 0.0,
    amended: Amendment | None = None,
    processes: Processes | None = None,
    known: Mapping[str, Solved] | None = None,
    kept: SolvedLayers | None = None,
    what: str = "",
    **objective: Any,
) -> list[Solved]:
    """The solutions of all layers that any concept changes, all of them in every process.

    Args:
        deltas: for each concept, its weight changes by module path.
        concepts: for each concept, the layers' inputs; may be in files.
        anchor: of the base under ordinary captions.
        device: where inputs in files are read to.
        keep_metrics: give every layer's S too.
        ridge: as for `build_problems`, like `shrinkage` and all others.
        amended: makes other problems of the layers' least-squares problems before they are solved.
        processes: that share the layers; None: this one solves all.
        known: solutions by module path, of layers that are not solved again.
        kept: where what is solved is put.
        what: for a progress bar; empty: none.

    Raises:
        MixshowError: see `build_problems`.
    """
    sets = [*concepts, *([] if anchor is None else [anchor])]
    processes = processes or Processes.alone()
    names = list(dict.fromkeys(name for each in deltas for name in each))
    # The same parts whatever the number of processes, so that these do not change the result.
    parts = list(_parts(names, sets))[processes.index :: processes.count]
    found: dict[str, Solved] = {}
    with progress_bar(sum(map(len, parts)), f"solving {what}", enabled=bool(what)) as bar:
        for part in parts:
            if known is not None and all(name in known for name in part):
                found |= {name: known[name] for name in part}
                bar.update(len(part))
                continue
            own = [_of_layers(each, part) for each in deltas]
            held = _at_hand(part, sets, device, in_passes=shrinkage == 0 and amended is None)
            solutions = _solve_part(
                own, held, anchor is not None, solver, keep_metrics, amended, ridge, shrinkage, objective
            )
            if kept is not None:
                kept.write(solutions)
            found |= {each.outcome.name: each for each in solutions}
            bar.update(len(part))
    every = {name: each for share in processes.gathered(found) for name, each in share.items()}
    return [every[name] for name in names]


def _of_layers(deltas: Deltas, names: Sequence[str]) -> Deltas:
    if isinstance(deltas, Changes):
        return deltas.only(names)  # still formed when they are used
    return {name: deltas[name] for name in names if name in deltas}


def _solve_part(
    deltas: Sequence[Deltas],
    held: Sequence[Inputs],
    anchored: bool,
    solver: Solver,
    keep_metrics: bool,
    amended: Amendment | None,
    ridge: float,
    shrinkage: float,
    objective: Mapping[str, Any],
) -> list[Solved]:
    """Solve layers whose inputs are at hand; the anchor's are the last of `held`."""
    first = next(iter(held[0]))
    inputs = [each[first] for each in held]
    span = None
    if any(isinstance(each, KeptRows) for each in inputs) and shrinkage == 0 and amended is None:
        span = common_span(first, inputs)
    if span is None:
        ready = _formed(held)
    else:
        deltas = [reduced(each, span.basis) for each in deltas]
        ridge = ridge * span.basis.shape[1] / len(span.basis)  # it is a share of the mean eigenvalue
        ready = [dict.fromkeys(each, own) for each, own in zip(held, span.formed(inputs))]  # one layer, or the same
    problems = build_problems(
        deltas,
        ready[:-1] if anchored else ready,
        anchor=ready[-1] if anchored else None,
        ridge=ridge,
        shrinkage=shrinkage,
        **objective,
    )
    problems = problems if amended is None else amended(problems)
    found = [
        Solved(outcome, problem.metric if keep_metrics else None)
        for problem, outcome in zip(problems, solve_thin(solver, problems))
    ]
    return found if span is None else [_whole(each, span.basis, problems[0].inputs.ridge_value) for each in found]


def _formed(held: Sequence[Inputs]) -> list[dict[str, LayerInputs]]:
    """Every layer's moments, of rows formed; what was shared still is."""
    known: dict[int, LayerInputs] = {}
    for each in held:
        for own in each.values():
            if id(own) not in known:
                known[id(own)] = formed(own)
    return [{name: known[id(own)] for name, own in each.items()} for each in held]


def _whole(solution: Solved, basis: Tensor, ridge: float) -> Solved:
    """A solution in terms of a basis of the inputs' span, in terms of the inputs."""
    coordinates = solution.outcome.coordinates @ basis.mT
    outcome = dataclasses.replace(solution.outcome, coordinates=coordinates, width=len(basis))
    return Solved(outcome, None if solution.metric is None else whole_metric(solution.metric, ridge, basis))


def _parts(names: Sequence[str], sets: Sequence[Inputs]) -> Iterator[list[str]]:
    """Layers that are solved together: those that read the same inputs always, and more while memory lasts.

    Layers whose inputs are rows have a basis of their own, so none are put to them.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in names:
        groups.setdefault(tuple(id(each[name]) for each in sets), []).append(name)
    part: list[str] = []
    size = 0
    for group in groups.values():
        inputs = [each[group[0]] for each in sets]
        needed = group_bytes(inputs)
        if any(_is_rows(each) for each in inputs):
            yield group
            continue
        if part and size + needed > _BYTES:
            yield part
            part, size = [], 0
        part, size = [*part, *group], size + needed
    if part:
        yield part


def group_bytes(inputs: Sequence[LayerInputs]) -> int:
    """Memory that layers with these inputs, one of each concept, take while they are solved with all at hand."""
    return at_hand_bytes(max(each.shape.numel() for each in inputs), len(inputs))


def at_hand_bytes(elements: int, sets: int) -> int:
    """The same, where moments have so many elements, one for each set of statistics."""
    return 8 * (sets + MATRICES) * elements


def solving_bytes(elements: Sequence[int], sets: int) -> int:
    """Memory that solving takes, where moments have so many elements, one for each set of statistics."""
    every, widest = sum(elements), max(elements, default=0)
    return min(at_hand_bytes(every, sets), max(_BYTES, at_hand_bytes(widest, 1)))


def _is_rows(inputs: LayerInputs) -> bool:
    return isinstance(inputs, KeptRows) or (isinstance(inputs, StoredInputs) and inputs.form == "rows")


def _at_hand(
    names: Sequence[str], sets: Sequence[Inputs], device: torch.device | str, *, in_passes: bool
) -> list[dict[str, LayerInputs]]:
    """The inputs of some layers, read where they are in files; what was shared still is.

    Moments stay in their files and are read one at a time where all concepts' would need too much memory at once, and
    on the CPU, where memory for them takes longer to get than the file to read again.

    Args:
        in_passes: problems mostly read a moment in a few passes for all layers; otherwise it is kept on the CPU, too.
    """
    read: dict[int, LayerInputs] = {}
    again = in_passes and torch.device(device).type == "cpu"
    streamed = again or group_bytes([each[names[0]] for each in sets]) > _BYTES
    found = []
    for each in sets:
        for name in names:
            own = each[name]
            if id(own) not in read:
                read[id(own)] = _read(own, device, streamed) if isinstance(own, StoredInputs) else own
        found.append({name: read[id(each[name])] for name in names})
    return found


def _read(inputs: StoredInputs, device: torch.device | str, streamed: bool) -> LayerInputs:
    if streamed and not _is_rows(inputs):
        return dataclasses.replace(inputs, device=device)
    return inputs.load(device)
