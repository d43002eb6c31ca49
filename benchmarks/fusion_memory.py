"""Memory that a fusion needs beyond its model, for several numbers of concepts; called by `fusion_solver.py`.

    python benchmarks/fusion_memory.py 14 [--toy]

Goes the way of `mixshow fuse` with every input of every layer at its real width: a recorder sums one concept's up,
its statistics go into a file, and when all concepts' are there the layers are solved from the files. The rows
themselves are few, since their number changes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from fusion_shapes import LowRank, Shape, factors, sd15_shapes, toy_shapes
from torch import nn

from mixshow.core.stopwatch import PeakMemory
from mixshow.fusion.origin import Origin
from mixshow.fusion.recorder import StatisticsRecorder
from mixshow.fusion.solve import solved
from mixshow.fusion.solvers import LBFGS
from mixshow.fusion.statistics import LayerInputs
from mixshow.fusion.statistics_file import SUFFIX, StoredInputs, open_statistics, write_statistics

ROWS = 64  # of an input and call
HALF = 2  # bytes


def published_bytes(shapes: Sequence[Shape], concepts: int) -> int:
    """Inputs and outputs of every layer, in half precision."""
    return concepts * sum(shape.layers * shape.rows * (shape.width + shape.out) * HALF for shape in shapes)


def own_peak(shapes: Sequence[Shape], concepts: int) -> float:
    """GB at the most, of recording one concept after the other and solving all layers."""
    sizes = {
        f"{shape.name}.{number}.{layer}": (shape.out, shape.width)
        for shape in shapes
        for number in range(shape.count)
        for layer in range(shape.shared)
    }
    warm_up()
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as peak:
        stored = [recorded(shapes, Path(folder), number) for number in range(concepts)]
        deltas = [changes(sizes, number) for number in range(concepts)]
        solved(deltas, stored, None, LBFGS(precondition=True), ridge=0.01, weights=[1.0] * concepts)
    return peak.gb


def changes(sizes: Mapping[str, tuple[int, int]], number: int) -> LowRank:
    """One concept's, of layers with so many outputs and inputs."""
    generator = torch.Generator().manual_seed(number)
    return LowRank({name: factors(out, width, generator) for name, (out, width) in sizes.items()})


def recorded(shapes: Sequence[Shape], folder: Path, number: int) -> Mapping[str, StoredInputs]:
    """One concept's statistics, in a file."""
    found: dict[str, LayerInputs] = {}
    generator = torch.Generator().manual_seed(number)
    for text in (True, False):
        groups = {
            f"{shape.name}.{place}": (shape.width, [f"{shape.name}.{place}.{layer}" for layer in range(shape.shared)])
            for shape in shapes
            if shape.text == text
            for place in range(shape.count)
        }
        layers = {name: nn.Linear(width, 1, bias=False) for width, names in groups.values() for name in names}
        with StatisticsRecorder(layers, double=text) as recorder, torch.no_grad():
            for _ in range(2):
                for width, names in groups.values():
                    rows = torch.randn(ROWS, width, generator=generator)
                    for name in names:
                        layers[name](rows)
        found.update(recorder.statistics())
    path = folder / f"{number}{SUFFIX}"
    origin = Origin("", "", str(number), (), 1.0, 1.0, (), (), True, 1, 1, 1, 0)
    write_statistics(path, found, origin)
    return open_statistics(path).layers


def warm_up() -> None:
    """What the libraries take once."""
    matrix = torch.eye(300, dtype=torch.float64)
    torch.linalg.qr(torch.linalg.cholesky(matrix) @ matrix)


def main() -> None:
    """Print GB."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("concepts", type=int)
    parser.add_argument("--toy", action="store_true")
    arguments = parser.parse_args()
    print(own_peak(toy_shapes() if arguments.toy else sd15_shapes(), arguments.concepts))


if __name__ == "__main__":
    main()
