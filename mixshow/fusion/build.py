"""From concepts' changes and statistics to the problems that solvers get: one per layer, weights and all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from mixshow.fusion.deltas import Deltas, Matrices
from mixshow.fusion.inputs import Inputs
from mixshow.fusion.problem import LayerProblem, quadratic
from mixshow.fusion.statistics import LayerInputs
from mixshow.fusion.statistics_file import StoredInputs

# What concepts' weights are divided by: nothing, their mean squared inputs, or that of what their changes make of them.
Normalisation = Literal["none", "inputs", "changes"]


def build_problems(
    deltas: Sequence[Deltas],
    statistics: Sequence[Mapping[str, LayerInputs]],
    *,
    weights: Sequence[float] | None,
    anchor: Mapping[str, LayerInputs] | None = None,
    anchor_weight: float = 0.0,
    ridge: float = 0.0,
    shrinkage: float = 0.0,
    normalise: Normalisation = "none",
) -> list[LayerProblem]:
    """One problem per layer that any concept changes.

    Args:
        deltas: for each concept, its weight changes by module path; with a last column for the bias or without.
        statistics: for each concept, by module path; every layer of `deltas` must be there.
        weights: one per concept, normalised to sum 1; None: in proportion to each layer's row counts (published).
        anchor: statistics of the base under ordinary captions.
        anchor_weight: mu.
        ridge: share of the mean eigenvalue.
        shrinkage: share of the moments' off-diagonal elements that is taken away.
        normalise: divide a concept's weight by its mean squared `inputs`, or by the mean square of what its `changes`
            add to the outputs; taken over the layers that read the same, which stay one problem.

    Raises:
        MixshowError: a concept changes a bias, and the statistics were recorded without the constant input; moments
            that are no numbers, or negative.
    """
    names = list(dict.fromkeys(name for each in deltas for name in each))
    groups: dict[tuple[int, ...], list[str]] = {}  # names of the layers that read the same
    for name in names:
        base = anchor[name] if anchor is not None and anchor_weight > 0 else None
        groups.setdefault(tuple(id(each) for each in (*(each[name] for each in statistics), base)), []).append(name)
    problems: dict[str, LayerProblem] = {}
    for group in groups.values():
        own = [each[group[0]] for each in statistics]
        base = anchor[group[0]] if anchor is not None and anchor_weight > 0 else None
        matrices = {name: Matrices(name, deltas, own[0]) for name in group}
        raw = [float(each.rows) for each in own] if weights is None else list(weights)
        if normalise != "none":
            raw = [value / loud for value, loud in zip(raw, _loudness(own, list(matrices.values()), normalise))]
        inputs = Inputs(own, [value / sum(raw) for value in raw], base, anchor_weight, ridge, shrinkage, group[0])
        if not any(isinstance(each, StoredInputs) for each in (*own, base)):
            inputs.look([None] * len(own))  # what is in files is looked at when it is read
        problems |= {name: LayerProblem(name, inputs, matrices[name]) for name in group}
    return [problems[name] for name in names]


def _loudness(
    statistics: Sequence[LayerInputs], deltas: Sequence[Sequence[Tensor | None]], normalise: Normalisation
) -> list[float]:
    """By what to divide each concept's weight; one that is silent here is as loud as the others on average.

    Args:
        deltas: of each layer, one per concept.
    """
    if normalise == "inputs":
        loud = [float((each.moment / max(each.rows, 1)).diagonal(dim1=-2, dim2=-1).sum()) for each in statistics]
    else:
        loud = []
        for each, own in zip(statistics, zip(*deltas)):
            moment = each.moment / max(each.rows, 1)
            loud.append(sum(quadratic(delta.double(), moment) for delta in own if delta is not None))
    heard = [value for value in loud if value > 0] or [1.0]
    return [value if value > 0 else sum(heard) / len(heard) for value in loud]
