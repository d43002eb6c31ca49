"""Fusion's solver against the published procedure, on equal inputs, with Stable Diffusion 1.5's layer shapes.

    python benchmarks/fusion_solver.py [--concepts 3] [--rows 1.0] [--only spatial] [--memory 3 14] [--toy]

The published procedure (Mix-of-Show's gradient fusion), written anew from what it does: all rows of all concepts are
kept in half precision, one layer after the other; L-BFGS (history 25, strong Wolfe, only the number of iterations
stops it, the best weights are kept) over the squared error of `rows @ W.T`, which goes through all rows in parts of
5,000 at every evaluation; 500 iterations for text encoder, keys and values, 50 elsewhere. Ours: rows are summed up as
they come (`StatisticsRecorder`), once for layers that read the same, and `LBFGS` solves the quadratic form. Both get
the published objective (no ridge, no anchor, weights by rows).

One layer of each distinct shape is measured with both and multiplied by how often the shape occurs; ours also with
the layers that share its inputs. Rows are random with the spectrum and the number that the published prompts, steps
and size give (512 pixels, 20 steps). Objectives are taken in float64 over the same rows, as shares of the unchanged
base's: the published one is above ours wherever it was stopped early.

Memory beyond the model: ours is the largest resident size above that at the start, of a process for each number of
concepts that goes through every layer (`fusion_memory.py`); the published features are counted, since those of 14
concepts do not fit into most machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from fusion_shapes import Factors, LowRank, Shape, factors, sd15_shapes, toy_shapes
from torch import Tensor, nn

from mixshow.core.stopwatch import machine
from mixshow.evaluation.page import markdown_table
from mixshow.fusion.collect import Statistics
from mixshow.fusion.problem import quadratic
from mixshow.fusion.recorder import StatisticsRecorder
from mixshow.fusion.solve import solved
from mixshow.fusion.solvers import LBFGS

T = TypeVar("T")
PART = 5000  # rows of the published procedure's evaluations
STEP = 4096  # rows that come at a time where inputs are recorded: a picture's positions


# --- what is recorded


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One input of a model, recorded for some concepts.

    Attributes:
        inputs: rows of each concept, `[rows, width]`, half precision as published, which both get.
        weights: of the layers that read it, `[out, width]`.
        changes: for each of these layers, one per concept, by its factors.
    """

    shape: Shape
    inputs: Sequence[Tensor]
    weights: Sequence[Tensor]
    changes: Sequence[Sequence[Factors]]

    @property
    def deltas(self) -> list[Tensor]:
        """Of the first layer, one per concept."""
        return [up @ down for up, down in self.changes[0]]


def recorded(shape: Shape, concepts: int, rows: int) -> Case:
    """Random rows: a few directions carry most, as behind a normalisation, and concepts share half of the rest."""
    generator = torch.Generator().manual_seed(shape.width + shape.rows)
    scales = torch.arange(1, shape.width + 1).pow(-0.75)
    common = torch.linalg.qr(torch.randn(shape.width, shape.width, generator=generator)).Q
    inputs = []
    for _ in range(concepts):
        own = torch.randn(shape.width, shape.width, generator=generator) / shape.width**0.5
        mixing = scales[:, None] * (common + 0.5 * own)
        mean = torch.randn(shape.width, generator=generator) * 0.2
        inputs.append(((torch.randn(rows, shape.width, generator=generator) @ mixing) + mean).half())
    weights, changes = [], []
    for _ in range(shape.shared):  # the first layer is the same, whether others share its inputs or not
        weights.append(torch.randn(shape.out, shape.width, generator=generator) / shape.width**0.5)
        changes.append([factors(shape.out, shape.width, generator) for _ in inputs])
    return Case(shape, inputs, weights, changes)


# --- the two ways


def published(case: Case) -> Tensor:
    """The change of the case's first layer that the published procedure ends with, `[out, width]`."""
    base = case.weights[0]
    rows = torch.cat(list(case.inputs))
    outputs = torch.cat([part.float() @ (base + delta).T for part, delta in zip(case.inputs, case.deltas)])
    weight = base.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight], lr=1, max_iter=case.shape.iterations, history_size=25, line_search_fn="strong_wolfe",
        tolerance_grad=1e-16, tolerance_change=1e-16,
    )  # fmt: skip
    best, least = base.clone(), float("inf")

    def evaluate() -> Tensor:
        nonlocal best, least
        optimizer.zero_grad()
        total = torch.zeros(())
        for start in range(0, len(rows), PART):
            part = rows[start : start + PART].float()
            share = len(part) / len(rows)
            loss = F.mse_loss(F.linear(part, weight), outputs[start : start + PART]) * share
            loss.backward()
            total += loss.detach()
        if float(total) < least:
            best, least = weight.detach().clone(), float(total)
        return total

    optimizer.step(evaluate)
    return best - base


def ours(case: Case, solver: LBFGS) -> list[Tensor]:
    """The changes of all layers of the case: rows summed up as they come, then solved."""
    statistics = [accumulated(case.shape, rows) for rows in case.inputs]
    changes = [LowRank(dict(zip(statistics[0], own))) for own in zip(*case.changes)]
    return [each.outcome.change for each in solved(changes, statistics, None, solver, weights=None)]


def accumulated(shape: Shape, rows: Tensor) -> Statistics:
    """Statistics of one concept, through the hooks that record; the layers behind them have one output only."""
    layers = {f"layer {number}": nn.Linear(shape.width, 1, bias=False) for number in range(shape.shared)}
    with StatisticsRecorder(layers, double=shape.text) as recorder, torch.no_grad():
        for part in in_steps(rows):
            for layer in layers.values():
                layer(part)
    return recorder.statistics()


def in_steps(rows: Tensor) -> Iterator[Tensor]:
    """The rows as they come while a picture is denoised."""
    for start in range(0, len(rows), STEP):
        yield rows[start : start + STEP].float()


def objectives(case: Case, changes: Sequence[Tensor]) -> list[float]:
    """Of changes of the first layer, as shares of the unchanged base's, in float64 over the recorded rows."""
    values = [0.0 for _ in (None, *changes)]
    for rows, delta in zip(case.inputs, case.deltas):
        moment = sum(part.double().T @ part.double() for part in in_steps(rows))
        assert isinstance(moment, Tensor)
        for place, change in enumerate([torch.zeros_like(delta), *changes]):
            values[place] += quadratic(change.double() - delta.double(), moment)
    return [value / values[0] for value in values[1:]]


# --- the tables


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of one shape: seconds for one layer as published, and for one input with all its layers as ours; objectives."""

    published_seconds: float
    own_seconds: float
    published_objective: float
    own_objective: float


def measure(shapes: Sequence[Shape], concepts: int, share: float) -> dict[Shape, Measured]:
    """Every shape; the published procedure once for those that differ in what they share only."""
    found: dict[Shape, Measured] = {}
    theirs: dict[tuple[int, int, int], tuple[float, Tensor]] = {}
    for shape in shapes:
        case = recorded(shape, concepts, max(2, round(share * shape.rows)))
        own_seconds, own = timed(partial(ours, case, LBFGS(precondition=True)))
        if shape.alike not in theirs:
            theirs[shape.alike] = timed(partial(published, case))
        seconds, change = theirs[shape.alike]
        theirs_value, own_value = objectives(case, [change, own[0]])
        found[shape] = Measured(seconds, own_seconds, theirs_value, own_value)
        print(f"{shape.name}: {seconds:.2f} s, {own_seconds:.3f} s", file=sys.stderr, flush=True)
    return found


def timed(do: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    result = do()
    return time.perf_counter() - start, result


def print_times(measured: Mapping[Shape, Measured]) -> None:
    """Per shape, and for all layers of the model."""
    rows = []
    for shape, each in measured.items():
        theirs, own = each.published_seconds * shape.layers, each.own_seconds * shape.count
        rows.append([
            shape.name, shape.layers, f"{each.published_seconds:.2f}", f"{each.own_seconds / shape.shared:.3f}",
            f"{theirs / own:.0f}", f"{each.published_objective:.2e}", f"{each.own_objective:.2e}",
        ])  # fmt: skip
    theirs = sum(each.published_seconds * shape.layers for shape, each in measured.items())
    own = sum(each.own_seconds * shape.count for shape, each in measured.items())
    lower = sum(each.own_objective <= each.published_objective + 1e-9 for each in measured.values())
    headings = ["layers", "number", "published, s a layer", "ours, s a layer", "ratio", "objective, published", "ours"]
    print(markdown_table(headings, rows))
    print(f"all layers: published {theirs:.0f} s, ours {own:.1f} s, ratio {theirs / own:.0f}")
    print(f"objective at most the published one (to 1e-9 of the base's): {lower} of {len(measured)} shapes")


def print_memory(counts: Sequence[int], toy: bool) -> None:
    """For each number of concepts, ours measured in a process of its own."""
    from fusion_memory import published_bytes

    shapes, script = toy_shapes() if toy else sd15_shapes(), Path(__file__).with_name("fusion_memory.py")
    rows = []
    for count in counts:
        command = [sys.executable, str(script), str(count), *(["--toy"] if toy else [])]
        own = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        theirs = published_bytes(shapes, count) / 1e9
        rows.append([count, f"{theirs:.1f}", f"{own:.2f}", f"{own / theirs:.3f}"])
    print(markdown_table(["concepts", "published, GB", "ours, GB", "ratio"], rows))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=3, help="timed (default: %(default)s)")
    parser.add_argument("--rows", type=float, default=1.0, help="share of the published number of rows")
    parser.add_argument("--only", default="", help="shapes whose name has this in it; 'nothing' for the memory alone")
    parser.add_argument("--memory", type=int, nargs="*", default=[3, 14], help="concepts (default: 3 14)")
    parser.add_argument("--toy", action="store_true", help="small layers, to see whether it runs")
    arguments = parser.parse_args()
    print(json.dumps(machine()))
    shapes = [each for each in (toy_shapes() if arguments.toy else sd15_shapes()) if arguments.only in each.name]
    print(f"{arguments.concepts} concepts, {arguments.rows:g} of the published rows")
    if shapes:
        measure(toy_shapes()[:1], 1, 1.0)  # what the libraries do once
        print_times(measure(shapes, arguments.concepts, arguments.rows))
    print_memory(arguments.memory, arguments.toy)


if __name__ == "__main__":
    main()
