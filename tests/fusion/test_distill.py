"""Distilling a fused model: it comes closer to the concepts' own models, and the base stays as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mixshow.fusion.baselines import weight_average
from mixshow.fusion.distill import DistillPlan, distill, write_curriculum
from mixshow.fusion.heldout import HeldOut, HeldOutPlan
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.members import Member
from mixshow.models import Base
from tests.fusion.test_fuse import hooks, state
from tests.tiny import tiny_concept

PLAN = DistillPlan(
    steps=60, rate=3e-3, batch_size=4, prompts=["a photo of {concept}", "{concept} in the rain"],
    captions=["", "a photo of a dog"], walk_steps=4,
)  # fmt: skip
HELD_OUT = HeldOutPlan(prompts=["a picture of {concept}"], captions=["a boy"], steps=3)


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=i)) for i, name in enumerate(("duck", "fox"))]


def test_distilling_brings_the_fused_model_closer_to_both_concepts(tiny: Base, members: list[Member]) -> None:
    start = weight_average(tiny, members)
    before, hooks_before = state(tiny), hooks(tiny)
    flags = [p.requires_grad for p in tiny.unet.parameters()]
    refined = distill(tiny, members, start, PLAN)
    after = state(tiny)
    assert all(torch.equal(after[key], before[key]) for key in before) and hooks(tiny) == hooks_before
    assert [p.requires_grad for p in tiny.unet.parameters()] == flags
    assert all(p.grad is None for p in tiny.unet.parameters())

    held_out = HeldOut(tiny, members, HELD_OUT)
    scores = []
    for fusion in (start, refined):
        fused, attachment = fusion.attach(tiny)
        with attachment:
            scores.append(held_out.score(fused))
    for member in members:
        name = member.concept.text
        assert scores[1].errors[name] < 0.9 * scores[0].errors[name]


def test_only_the_unet_moves_and_shapes_stay(tiny: Base, members: list[Member]) -> None:
    start = weight_average(tiny, members)
    refined = distill(tiny, members, start, dataclasses.replace(PLAN, steps=2))
    assert refined.changes.keys() == start.changes.keys()
    stages = {layer.path: layer.stage for layer in layers_of(tiny).values()}
    for path, change in refined.changes.items():
        assert change.shape == start.changes[path].shape and change.dtype == start.changes[path].dtype
        assert torch.equal(change, start.changes[path]) == (stages[path] is Stage.TEXT)


def test_the_same_seed_gives_the_same_model(tiny: Base, members: list[Member]) -> None:
    plan = dataclasses.replace(PLAN, steps=3)
    once, again = (distill(tiny, members, weight_average(tiny, members), plan) for _ in range(2))
    assert all(torch.equal(once.changes[path], again.changes[path]) for path in once.changes)


def test_every_point_of_every_walk_is_a_lesson(tiny: Base, members: list[Member]) -> None:
    curriculum = write_curriculum(tiny, members, PLAN)
    per_concept = PLAN.walk_steps * len(PLAN.prompts)
    assert [len(lessons) for lessons in curriculum.concepts] == [per_concept] * 2
    assert len(curriculum.empty) == 2 * per_concept and set(curriculum.empty.prompts) == {""}
    assert len(curriculum.ordinary) == PLAN.walk_steps * len(PLAN.captions)
    assert len(curriculum.scale) == PLAN.walk_steps and min(curriculum.scale.values()) > 0
