"""Fusion against the published implementation's recorded run: `python benchmarks/published_reference.py [FOLDER]`.

Measures, with the published preset, what `fixtures/published_reference` was made to measure: text encoder changes, keys
and values recorded through the published text encoder, the solver alone on the recorded moments, and spatial layers end
to end. Their start noise was not kept, so single spatial layers differ by tens of per cent with any other noise; only
the median over layers means something.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mixshow.core.files import read_safetensors
from mixshow.formats import read_concept
from mixshow.formats.published_options import read_concept_list
from mixshow.fusion.build import build_problems
from mixshow.fusion.collect import PUBLISHED, Collection, key_value_statistics
from mixshow.fusion.fuse import fuse
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.objective import Objective
from mixshow.fusion.problem import quadratic
from mixshow.fusion.prompts import filled
from mixshow.fusion.solvers import LBFGS, Exact, Solver
from mixshow.models import Base, load_base

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "fixtures" / "published_reference"
PICTURE_SIDE = 512  # pixels; what the published run recorded at
SOLVERS: dict[Stage, Solver] = {Stage.TEXT: LBFGS(500), Stage.KEY_VALUE: LBFGS(500), Stage.SPATIAL: LBFGS(50)}
BY_ROWS = Objective(weights_by_rows=True)


class Reference:
    """The published run: base, concepts, and per layer its optimum, moment and result."""

    def __init__(self, folder: Path) -> None:
        self.base = load_base(folder / "base")
        self.fused = load_base(folder / "fused", vae=folder / "base")
        self.members = [
            Member(read_concept(folder / file), unet=unet, text_encoder=text)
            for file, unet, text, _ in read_concept_list(folder / "concepts.json")
        ]
        before = {layer.path: layer for layer in layers_of(self.base).values()}
        after = {layer.path: layer for layer in layers_of(self.fused).values()}
        self.stage = {path: layer.stage for path, layer in before.items()}
        # The file holds the optimum's weights, W_0 + change.
        optimum = read_safetensors(folder / "minimum_change.safetensors")[0]
        optimum = {key.removesuffix(".weight"): weight.double().flatten(1) for key, weight in optimum.items()}
        weights = {path: before[path].module.get_parameter("weight").detach().double().flatten(1) for path in optimum}
        self.optimum = {path: weight - weights[path] for path, weight in optimum.items()}
        moments = read_safetensors(folder / "mean_grams.safetensors")[0]
        self.moments = {key.removesuffix(".weight"): moment.double() for key, moment in moments.items()}
        self.published = {
            path: after[path].module.get_parameter("weight").detach().double().flatten(1) - weights[path]
            for path in self.optimum
        }
        records = json.loads((folder / "solver_record.json").read_text()).values()
        # Recorded per row and output; here per row.
        self.base_objective = {
            each["name"].removesuffix(".weight"): each["obj_base"] * each["shape"][0] for each in records
        }

    def distance(self, path: str, change: Tensor) -> float:
        """`||D - D*|| / ||D*||` of a layer."""
        return float((change - self.optimum[path]).norm() / self.optimum[path].norm())

    def excess(self, path: str, change: Tensor) -> float:
        """`tr((D - D*) G (D - D*)^T)` as a share of the base weight's objective."""
        return quadratic(change - self.optimum[path], self.moments[path]) / self.base_objective[path]

    def of_stage(self, stage: Stage) -> list[str]:
        return [path for path in self.optimum if self.stage[path] is stage]


def text_and_key_value_distances(reference: Reference, solver: Solver) -> tuple[list[float], list[float]]:
    """Distances to the optimum of text encoder layers, and of keys and values through the published text encoder."""
    text = _stage_changes(reference.base, reference, Stage.TEXT, solver)
    key_value = _key_values_through(reference.fused, reference, solver)
    return [reference.distance(path, change) for path, change in text.items()], [
        reference.distance(path, change) for path, change in key_value.items()
    ]


def _stage_changes(base: Base, reference: Reference, stage: Stage, solver: Solver) -> Mapping[str, Tensor]:
    only = [_part(member, reference, stage) for member in reference.members]
    return fuse(base, only, PUBLISHED, BY_ROWS, dict.fromkeys(Stage, solver)).changes


def _part(member: Member, reference: Reference, stage: Stage) -> Member:
    """The concept with the tensors of one stage only."""
    layers = layers_of(reference.base)
    network = {key: t for key, t in member.concept.network.items() if layers[key.partition(".")[0]].stage is stage}
    return replace(member, concept=replace(member.concept, network=network))


def _key_values_through(fused: Base, reference: Reference, solver: Solver) -> Mapping[str, Tensor]:
    layers = changed_layers(reference.base, reference.members, Stage.KEY_VALUE)
    recorded = [
        key_value_statistics(fused, layers, filled(PUBLISHED.text_prompts, member.concept.text), every_position=False)
        for member in reference.members
    ]
    deltas = [member.changes(reference.base, [Stage.KEY_VALUE]) for member in reference.members]
    outcomes = solver.solve(build_problems(deltas, recorded, weights=None))
    return {outcome.name: outcome.change for outcome in outcomes}


def solver_excesses(reference: Reference, solver: LBFGS) -> dict[str, tuple[float, float]]:
    """On the recorded moments (S = G, B = D* G), per layer the excess of ours and of the published result."""
    found = {}
    shapes = {change.shape for change in reference.optimum.values()}
    for shape in shapes:
        paths = [path for path, change in reference.optimum.items() if change.shape == shape]
        moments = torch.stack([reference.moments[path] for path in paths])
        targets = torch.stack([reference.optimum[path] for path in paths]) @ moments
        for path, change in zip(paths, solver.minimise(moments, targets)[0]):
            found[path] = reference.excess(path, change), reference.excess(path, reference.published[path])
    return found


def end_to_end(reference: Reference, *, seed: int = 0) -> Mapping[str, Tensor]:
    """All changes of a fusion with the published preset."""
    collection: Collection = replace(PUBLISHED, width=PICTURE_SIDE, height=PICTURE_SIDE, seed=seed)
    return fuse(reference.base, reference.members, collection, BY_ROWS, SOLVERS, show_progress=True).changes


def spatial_excess(reference: Reference, changes: Mapping[str, Tensor]) -> float:
    """Median over spatial layers of our excess objective beyond the published one, as share of the base's."""
    return statistics.median(
        reference.excess(path, changes[path]) - reference.excess(path, reference.published[path])
        for path in reference.of_stage(Stage.SPATIAL)
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument(
        "--quick", action="store_true", help="leave out the spatial layers, which take denoising at 512 pixels"
    )
    arguments = parser.parse_args()
    reference = Reference(arguments.folder)
    rows: list[tuple[str, str, str]] = []
    for name, solver in (("lbfgs, 500 steps", LBFGS(500)), ("exact", Exact())):
        text, key_value = text_and_key_value_distances(reference, solver)
        rows.append((f"text encoder, {name}: distance to the optimum, median / worst", _pair(text), "0.5 %"))
        rows.append((f"keys and values through fused/text_encoder, {name}", _pair(key_value), "0.5 %"))
    for steps in (500, 50):
        excesses = solver_excesses(reference, LBFGS(steps))
        kept = {p: e for p, e in excesses.items() if steps == 500 or reference.stage[p] is Stage.SPATIAL}
        above = sum(ours > published for ours, published in kept.values())
        rows.append(
            (f"solver alone, {steps} steps: layers above the published objective", f"{above} of {len(kept)}", "0")
        )
    if not arguments.quick:
        changes = end_to_end(reference)
        own = [reference.distance(path, changes[path]) for path in reference.of_stage(Stage.KEY_VALUE)]
        rows.append(("keys and values through our own text encoder", _pair(own), "(reported)"))
        rows.append(
            (
                "spatial layers end to end, other start noise: median excess",
                f"{spatial_excess(reference, changes):+.3%}",
                "+2 %",
            )
        )
    width = max(len(what) for what, _, _ in rows)
    for what, value, bar in rows:
        print(f"{what:<{width}}  {value:>22}  bar {bar}")


def _pair(distances: list[float]) -> str:
    return f"{statistics.median(distances):.4%} / {max(distances):.4%}"


if __name__ == "__main__":
    main()
