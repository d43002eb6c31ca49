"""Memory that a fusion takes beside the model, from the layers' widths, before anything has run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixshow.fusion.collect import Collection
from mixshow.fusion.cost import solved_bytes
from mixshow.fusion.distinct_inputs import DistinctInputs, distinct_inputs
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.solve import MATRICES, at_hand_bytes, solving_bytes
from mixshow.fusion.statistics import input_width, is_elementwise
from mixshow.lycoris.carrier import own_weight

_FUSIONS = 4  # of passes that solve again: the first, the best, the latest and the one that is made
RECORDING = "recording a concept"
IN_ORDER = "solving layers in order"
DISTILLING = "distilling"
_ROWS_WORK = 5  # tensors of a layer's outputs on kept rows, while another objective than squares is minimised


def fusion_memory(
    layers: Sequence[Layer],
    collection: Collection,
    members: int,
    sets: int,
    *,
    recording: bool = True,
    kept: bool = False,
    again: bool = False,
    shrunk: bool = False,
    metrics: bool = False,
    waiting: int = 0,
    running: int = 0,
    together: int = 1,
    backward: int = 0,
    ranks: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Bytes by what they are needed for.

    Args:
        layers: that any concept changes.
        collection: with `rows` where the objective keeps some.
        sets: of statistics: one per member, and one more for an anchor.
        recording: whether a set is recorded into a file beforehand.
        kept: of layers that are solved in order too.
        again: everything is recorded again afterwards, through the fused model.
        shrunk: moments are shrunk, those of wide inputs therefore formed.
        metrics: every layer's S is kept until changes are truncated in it, beside the solutions themselves.
        backward: bytes that a pass forwards keeps for one backwards, while rows are weighed.
        waiting: bytes of points that wait at layers which are solved in order.
        running: bytes of one picture's pass through the UNet.
        together: points of a pass in order, each of which runs in two models.
        ranks: of solutions that are kept as factors, by module path.
    """
    in_order = [layer for layer in layers if collection.solves_in_order(layer)]
    inputs = distinct_inputs(layers, collection)
    results = solved_bytes(layers, ranks or {}) + (metric_bytes(inputs, collection) if metrics else 0)
    apart = [layer for layer in layers if layer not in in_order]
    stages = [own for stage in Stage if (own := [layer for layer in apart if layer.stage is stage])]
    solving = [
        solving_memory(own, collection, sets, shrunk=shrunk) + kept_bytes(own, collection, members) for own in stages
    ]
    found = {}
    if recording and not collection.progressive:
        recorded = layers if kept else apart
        drawn = any(layer.stage is Stage.SPATIAL for layer in recorded)
        found[RECORDING] = recording_bytes(recorded, collection) + backward + drawn * collection.batch_size * running
    if not collection.progressive:
        found["solving"] = max(solving, default=0) + results
    if in_order:
        largest = max(paired_bytes(each) for each in distinct_inputs(in_order, collection))
        most = max(collection.share_of_points(members, captions=captions) for captions in (False, True))
        passing = 2 * min(together, most) * running
        found[IN_ORDER] = waiting + passing + (sets + MATRICES) * largest + results
    if collection.progressive or again:
        # All concepts' statistics of a stage are at hand, while the last is recorded and while all are solved.
        by_stage = [
            held_bytes(own, collection, sets) + max(recording_bytes(own, collection), solved)
            for own, solved in zip(stages, solving)
        ]
        what = "recording and solving again" if again else "recording and solving by stages"
        found[what] = max(by_stage, default=0) + results * (_FUSIONS if again else 1)
    return found


def distilling_bytes(weights: int, kept: int, *, factors: bool, copied: bool = False) -> int:
    """Of weights that are distilled, beside the solution.

    While it learns each has its value, a gradient and, as a whole, AdamW's two; afterwards the result in the gradient's
    place, in single precision (but of layers whose bias changes).

    Args:
        weights: how many.
        kept: bytes that a pass keeps for its gradients.
        factors: what moves is few, beside the weights that they give.
        copied: the base is in a smaller number type, so that what it was is kept in single precision too.
    """
    single = 4
    return weights * single * (1 + copied + (0 if factors else 2)) + weights * single + kept


def paired_bytes(inputs: DistinctInputs) -> int:
    """Of a set's moment and its products with what outputs lack."""
    return 8 * inputs.count * inputs.width * (inputs.width + max(inputs.outputs))


def metric_bytes(inputs: Sequence[DistinctInputs], collection: Collection) -> int:
    """Of every S in double precision: layers that read the same share one, but where rows are kept in its place."""
    return sum(8 * each.elements * (len(each.outputs) if each.is_wide(collection) else 1) for each in inputs)


def recording_bytes(layers: Sequence[Layer], collection: Collection) -> int:
    """Of recording one concept: rows, or moments in float64 beside their latest products."""
    return sum(
        4 * each.kept_elements(collection) if each.is_wide(collection) else 16 * each.elements
        for each in distinct_inputs(layers, collection)
    )


def held_bytes(layers: Sequence[Layer], collection: Collection, sets: int) -> int:
    """Of statistics that are at hand, as they were recorded."""
    return sets * sum(
        4 * each.kept_elements(collection) if each.is_wide(collection) else 8 * each.elements
        for each in distinct_inputs(layers, collection)
    )


def kept_bytes(layers: Sequence[Layer], collection: Collection, members: int) -> int:
    """Of rows that objectives other than squares keep of every layer, with what their largest layer takes."""
    rows = members * collection.rows
    sampled = [layer for layer in layers if not is_elementwise(layer.module)]
    widths = [input_width(layer.module) + layer.extended for layer in sampled]
    work = [
        8 * (width + _ROWS_WORK * len(own_weight(layer.module))) for width, layer in zip(widths, sampled, strict=True)
    ]
    return rows * (4 * sum(widths) + max(work, default=0))


def solving_memory(layers: Sequence[Layer], collection: Collection, sets: int, *, shrunk: bool = False) -> int:
    """Of solving, with as many sets of statistics in files."""
    inputs = distinct_inputs(layers, collection)
    wide = [each.width * _directions(each, collection, sets, shrunk) for each in inputs if each.is_wide(collection)]
    moments = [each.elements for each in inputs if not each.is_wide(collection)]
    return max(solving_bytes(moments, sets), at_hand_bytes(max(wide, default=0), sets))


def _directions(inputs: DistinctInputs, collection: Collection, sets: int, shrunk: bool) -> int:
    """In which wide inputs are solved: as many as there are rows, or all where their moment is formed."""
    whole = shrunk or collection.rows > 0
    return inputs.width if whole else min(inputs.width, sets * collection.kept_rows)
