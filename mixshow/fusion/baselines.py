"""What fusion is compared with: ways of merging that look at the concepts' changes alone, not at what layers read.

Every way makes one change of the concepts' changes D_i, at their strengths, and their weights w_i, layer by layer.
Where a concept leaves a layer alone it takes no part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mixshow.core.optional import optional_import
from mixshow.core.seeding import derived_seed
from mixshow.fusion.deltas import widened
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.layers import layers_of
from mixshow.fusion.members import Member, all_embeddings
from mixshow.fusion.statistics import is_elementwise
from mixshow.models import Base

_ROUNDING = 1e-6  # changes are formed in float32; smaller singular values, as a share of the largest, are its rounding


@dataclasses.dataclass(frozen=True)
class Plan:
    """What some of the ways want to know.

    Attributes:
        rank: of `svd`; None: the largest of the concepts' in each layer.
        density: share of the elements that `ties` and `dare` keep.
        seed: of the elements that `dare` keeps.
    """

    rank: int | None = None
    density: float = 0.5
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Changes:
    """The changes of one layer.

    Attributes:
        path: module path.
        deltas: `[out, in]` each, float64; where a bias changes, with one more column.
        weights: one each.
        rank: the largest of the concepts' ranks.
    """

    path: str
    deltas: Sequence[Tensor]
    weights: Sequence[float]
    rank: int


Way = Callable[[Changes, Plan], Tensor]


def weighted_sum(base: Base, members: Sequence[Member]) -> Fusion:
    """`D = sum_i w_i D_i`, every concept at its weight."""
    return merged(base, members, _sum, Plan())


def weight_average(base: Base, members: Sequence[Member]) -> Fusion:
    """`D = sum_i w_i D_i / sum_i w_i`, what merging tools do by default."""
    summed = weighted_sum(base, members)
    share = 1 / sum(member.weight for member in members)
    return Fusion({path: share * change for path, change in summed.changes.items()}, summed.embeddings)


def merge(base: Base, members: Sequence[Member], way: str, plan: Plan) -> Fusion:
    """Merge by a way of `WAYS`, or `average`.

    Raises:
        MixshowError: it needs PEFT, which is not installed.
    """
    if way == "average":
        return weight_average(base, members)
    return merged(base, members, WAYS[way], plan)


def merged(base: Base, members: Sequence[Member], way: Way, plan: Plan) -> Fusion:
    """Merge layer by layer."""
    own = [member.changes(base) for member in members]
    directions = [member.output_directions(base) for member in members]
    modules = {layer.path: layer.module for layer in layers_of(base).values()}
    found: dict[str, Tensor] = {}
    for path in dict.fromkeys(path for changes in own for path in changes):
        having = [i for i, changes in enumerate(own) if path in changes]
        width = max(own[i][path].flatten(1).shape[1] for i in having)  # biases are one more column
        deltas = [widened(own[i][path], width).double() for i in having]
        spans = [directions[i].get(path) for i in having]
        rank = max(min(delta.shape) if span is None else span.shape[1] for delta, span in zip(deltas, spans))
        layer = Changes(path, deltas, [members[i].weight for i in having], rank)
        # The channels of a normalisation have nothing in common that a matrix could show.
        found[path] = (_sum if is_elementwise(modules[path]) else way)(layer, plan)
    return Fusion(found, all_embeddings(members))


def _sum(layer: Changes, _: Plan) -> Tensor:
    total = torch.zeros_like(layer.deltas[0])
    for weight, delta in zip(layer.weights, layer.deltas):
        total = total + weight * delta
    return total


def _svd(layer: Changes, plan: Plan) -> Tensor:
    """The sum, cut to its largest singular values."""
    left, values, right = torch.linalg.svd(_sum(layer, plan), full_matrices=False)
    rank = plan.rank or layer.rank
    return left[:, :rank] * values[:rank] @ right[:rank]


def _orthogonal(layer: Changes, plan: Plan) -> Tensor:
    """The sum of the changes, each reading inputs along directions of its own, so that none answers to another's.

    The directions are the nearest orthonormal ones to all concepts' input directions together (Loewdin 1950). Concepts
    trained on directions that are orthogonal from the start (Po et al. 2024, arXiv 2312.02432) are just added up.
    """
    spans = [_input_directions(delta) for delta in layer.deltas]
    left, values, right = torch.linalg.svd(torch.cat(spans), full_matrices=False)
    kept = values > _ROUNDING * values.max() if len(values) else values > 0
    apart = (left[:, kept] @ right[kept]).split([len(span) for span in spans])
    turned = [delta @ span.mT @ own for delta, span, own in zip(layer.deltas, spans, apart)]
    return _sum(dataclasses.replace(layer, deltas=turned), plan)


def _input_directions(delta: Tensor) -> Tensor:
    """Orthonormal rows `[rank, in]` that span what a change reads."""
    _, values, right = torch.linalg.svd(delta, full_matrices=False)
    return right[values > _ROUNDING * values[0]]


def _by_peft(name: str, layer: Changes, plan: Plan) -> Tensor:
    """TIES (Yadav et al. 2023, arXiv 2306.01708) and DARE (Yu et al. 2023, arXiv 2311.03099), as PEFT has them."""
    functions = optional_import("peft.utils.merge_utils", extra="peft", purpose=f"method={name}")
    function = getattr(functions, {"dare": "dare_linear"}.get(name, name))
    deltas, weights = [delta.cpu() for delta in layer.deltas], torch.tensor(layer.weights, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):  # it draws from the global generator
        torch.manual_seed(derived_seed(plan.seed, name, layer.path))
        found: Tensor = function(deltas, weights, plan.density)
    return found.to(layer.deltas[0].device)


WAYS: Mapping[str, Way] = {
    "sum": _sum,
    "concatenate": _sum,  # factors side by side: the same change
    "svd": _svd,
    "orthogonal": _orthogonal,
    **{name: partial(_by_peft, name) for name in ("ties", "dare", "dare_ties")},
}
