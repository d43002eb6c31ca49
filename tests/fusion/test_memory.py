"""What a fusion says beforehand that it needs, beside what it then holds."""

from __future__ import annotations

import dataclasses

import pytest

from mixshow.fusion.collect import Collection
from mixshow.fusion.cost import solved_bytes
from mixshow.fusion.distinct_inputs import distinct_inputs
from mixshow.fusion.fuse import Recorded, fuse, keep_inputs, record_stage
from mixshow.fusion.fusion import FormedChanges
from mixshow.fusion.layers import Stage
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.memory import (
    IN_ORDER,
    RECORDING,
    fusion_memory,
    held_bytes,
    kept_bytes,
    metric_bytes,
    solving_memory,
)
from mixshow.fusion.objective import Objective
from mixshow.fusion.own_and_fused import pictures_together, running_bytes, waiting_bytes
from mixshow.fusion.solvers import Exact
from mixshow.fusion.thin import ranks_of
from mixshow.fusion.wide import KeptRows
from mixshow.models import Base
from tests.tiny import tiny_concept

COLLECTION = Collection(
    text_prompts=["{concept}"], picture_prompts=["{concept}"], steps=1, rows=4, moment_width=20, kept_rows=1
)
OBJECTIVE = Objective(anchor_weight=0.3, captions=["a dog"])


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=i)) for i, name in enumerate(("duck", "fox"))]


@pytest.mark.parametrize("stage", list(Stage))
def test_what_is_held_of_a_stage_is_counted(stage: Stage, tiny: Base, members: list[Member]) -> None:
    layers = changed_layers(tiny, members, stage)
    recorded = record_stage(tiny, members, stage, COLLECTION, OBJECTIVE)
    assert sum(bytes_of(recorded)) == held_bytes(layers, COLLECTION, 3)
    samples = keep_inputs(tiny, members, stage, COLLECTION, OBJECTIVE).samples
    distinct = {each.data_ptr(): each for own in samples for each in own.values()}.values()
    held = sum(each.nbytes for each in distinct)  # keys and values share theirs, which is not counted on
    assert 0 < held <= kept_bytes(layers, COLLECTION, len(members))
    assert kept_bytes(layers, dataclasses.replace(COLLECTION, rows=0), len(members)) == 0


def bytes_of(recorded: Recorded) -> list[int]:
    assert recorded.anchor is not None
    each = {id(own): own for held in (*recorded.concepts, recorded.anchor) for own in held.values()}.values()
    return [own.kept.nbytes if isinstance(own, KeptRows) else own.moment.nbytes for own in each]


def test_every_part_of_a_fusion_is_counted(tiny: Base, members: list[Member]) -> None:
    layers = [layer for stage in Stage for layer in changed_layers(tiny, members, stage)]
    squares = dataclasses.replace(COLLECTION, rows=0)
    plain = fusion_memory(layers, squares, 2, 3)
    assert plain.keys() == {"recording a concept", "solving"}
    assert fusion_memory(layers, squares, 2, 3, recording=False).keys() == {"solving"}
    most = max(held_bytes(changed_layers(tiny, members, stage), squares, 3) for stage in Stage)
    again = fusion_memory(layers, squares, 2, 3, again=True)
    assert again["recording and solving again"] > max(most, plain["solving"]) and again.keys() > plain.keys()
    [stages] = fusion_memory(layers, dataclasses.replace(squares, progressive=True), 2, 3).values()
    solutions = solved_bytes(layers, {})
    assert stages - solutions == again["recording and solving again"] - 4 * solutions
    # Rows, and the moments of wide inputs, which other objectives and shrinking want formed.
    assert fusion_memory(layers, COLLECTION, 2, 3)["solving"] > plain["solving"]
    few = dataclasses.replace(squares, moment_width=1, kept_rows=1)
    formed = fusion_memory(layers, few, 2, 3, shrunk=True)["solving"]
    assert formed > fusion_memory(layers, few, 2, 3)["solving"]


def test_points_that_wait_and_passes_with_gradients_are_counted(tiny: Base, members: list[Member]) -> None:
    layers = [layer for stage in Stage for layer in changed_layers(tiny, members, stage)]
    collection = dataclasses.replace(COLLECTION, rows=0, sequential=True, moment_width=10_000)
    few, many = (fusion_memory(layers, collection, 2, 3, waiting=waiting) for waiting in (0, 10**9))
    assert many[IN_ORDER] == few[IN_ORDER] + 10**9 and few[IN_ORDER] > solved_bytes(layers, {})
    kept = fusion_memory(layers, collection, 2, 3, kept=True, backward=10**9)[RECORDING]
    apart = dataclasses.replace(collection, sequential=False)
    assert kept == fusion_memory(layers, apart, 2, 3)[RECORDING] + 10**9 > many[RECORDING] + 10**9
    for together, passes in ((1, 2), (8, 2 * collection.share_of_points(2))):
        ran = fusion_memory(layers, collection, 2, 3, running=10**6, together=together)
        assert ran[IN_ORDER] == few[IN_ORDER] + min(passes, 2 * together) * 10**6
    drawn = fusion_memory(layers, collection, 2, 3, kept=True, running=10**6)[RECORDING]
    assert drawn == kept - 10**9 + collection.batch_size * 10**6
    side = 64 * tiny.topology.latent_factor  # four thousand positions
    large = dataclasses.replace(collection, width=side, height=side, batch_size=8)
    assert pictures_together(tiny, large) == 2 and pictures_together(tiny, collection) == collection.batch_size
    assert running_bytes(tiny, large) == (64 * 64 // tiny.topology.sample_size**2) * running_bytes(tiny, collection)
    one, two = (waiting_bytes(tiny, collection, points) for points in (1, 2))
    assert two == 2 * one > 2 * 2 * tiny.unet.config.block_out_channels[0] * tiny.topology.sample_size**2


def test_what_is_kept_of_solved_layers_is_counted(tiny: Base, members: list[Member]) -> None:
    """Solutions in float64, and with a rank to truncate to S of what they read."""
    layers = [layer for stage in Stage for layer in changed_layers(tiny, members, stage)]
    collection = dataclasses.replace(COLLECTION, rows=0, moment_width=10_000)
    fusion = fuse(tiny, members, collection, OBJECTIVE, dict.fromkeys(Stage, Exact()), keep_metrics=True)
    ranks = ranks_of(tiny, members)
    assert isinstance(fusion.changes, FormedChanges) and ranks.keys() == fusion.changes.keys()
    changes = sum(part.nbytes for parts in fusion.changes.parts.values() for part in parts)
    assert changes == solved_bytes(layers, ranks) < solved_bytes(layers, {})
    metrics = sum(metric.nbytes for metric in {id(metric): metric for metric in fusion.metrics.values()}.values())
    plain, kept = (
        fusion_memory(layers, collection, 2, 3, metrics=metrics, ranks=ranks)["solving"] for metrics in (False, True)
    )
    solving = max(solving_memory(changed_layers(tiny, members, stage), collection, 3) for stage in Stage)
    assert plain == solving + changes
    assert kept == plain + metrics
    again = fusion_memory(layers, collection, 2, 3, again=True, metrics=True, ranks=ranks)[
        "recording and solving again"
    ]
    assert again > 4 * (changes + metrics)


def test_layers_that_are_solved_in_their_rows_span_stay_factors_too(tiny: Base, members: list[Member]) -> None:
    layers = [layer for stage in Stage for layer in changed_layers(tiny, members, stage)]
    collection = dataclasses.replace(COLLECTION, rows=0, moment_width=20, kept_rows=2)
    fusion = fuse(tiny, members, collection, OBJECTIVE, dict.fromkeys(Stage, Exact()))
    assert isinstance(fusion.changes, FormedChanges)
    held = sum(part.nbytes for parts in fusion.changes.parts.values() for part in parts)
    assert held == solved_bytes(layers, ranks_of(tiny, members))
    whole = fuse(
        tiny, members, dataclasses.replace(collection, moment_width=10_000), OBJECTIVE, dict.fromkeys(Stage, Exact())
    )
    assert fusion.changes.keys() == whole.changes.keys()


def test_every_wide_layer_keeps_a_metric_of_its_own(tiny: Base, members: list[Member]) -> None:
    layers = [layer for stage in Stage for layer in changed_layers(tiny, members, stage)]
    collection = dataclasses.replace(COLLECTION, rows=0, moment_width=20, kept_rows=1)
    fusion = fuse(tiny, members, collection, OBJECTIVE, dict.fromkeys(Stage, Exact()), keep_metrics=True)
    metrics = sum(metric.nbytes for metric in {id(metric): metric for metric in fusion.metrics.values()}.values())
    assert metric_bytes(distinct_inputs(layers, collection), collection) == metrics
