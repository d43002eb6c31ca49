"""All layers of a stage through a solver: so many at a time that memory stays bounded, on this process and others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from mixshow.core.processes import Processes
from mixshow.core.progress import progress_bar
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.solvers import Outcome, Solver
from mixshow.fusion.solvers.outcome import by_inputs
from mixshow.fusion.thin import solve_thin

_BATCH_BYTES = 1 << 28
_MATRICES = 6  # of the inputs' width that are held for each group: S with and without ridge, its factor, copies of both


def solve_layers(
    solver: Solver,
    problems: Sequence[LayerProblem],
    what: str,
    *,
    processes: Processes | None = None,
    show_progress: bool = False,
) -> list[Outcome]:
    """Every process returns all outcomes, in the problems' order.

    Layers go to the solver in batches, the same ones whatever the number of processes, and nothing that was computed
    for a batch outlasts it.

    Args:
        what: for the progress bar.
        processes: that share the batches; None: this one does all.
    """
    processes = processes or Processes.alone()
    own: dict[int, Outcome] = {}
    batches = list(_batches(problems))
    mine = batches[processes.index :: processes.count]
    with progress_bar(sum(map(len, mine)), f"solving {what}", enabled=show_progress) as bar:
        for places in mine:
            outcomes = solve_thin(solver, _anew([problems[place] for place in places]))
            own |= dict(zip(places, outcomes))
            bar.update(len(places))
    found = {place: outcome for part in processes.gathered(own) for place, outcome in part.items()}
    return [found[place] for place in range(len(problems))]


def _batches(problems: Sequence[LayerProblem]) -> Iterator[list[int]]:
    """Places of layers that are solved together: all that read the same, then more of the same width."""
    waiting: dict[tuple[int, ...], list[int]] = {}
    for places in by_inputs(problems):
        shape = problems[places[0]].inputs.shape
        together = waiting.setdefault(tuple(shape), [])
        together += places
        groups = len({id(problems[place].inputs) for place in together})
        if (groups + 1) * _MATRICES * 8 * shape.numel() > _BATCH_BYTES:
            yield waiting.pop(tuple(shape))
    yield from waiting.values()


def _anew(problems: Sequence[LayerProblem]) -> list[LayerProblem]:
    """Copies that share inputs as the originals do, and keep to themselves what is computed of them."""
    inputs = {id(problem.inputs): dataclasses.replace(problem.inputs) for problem in problems}
    return [dataclasses.replace(problem, inputs=inputs[id(problem.inputs)]) for problem in problems]
