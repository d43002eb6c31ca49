"""Distilling a fused model: it comes closer to the concepts' own models, and the base stays as it was."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch

from mixshow.config.refine import RefineOptions
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion.baselines import weight_average
from mixshow.fusion.distill import distill
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.lessons import DistillPlan, Lessons, write_curriculum
from mixshow.fusion.members import Member
from mixshow.models import Base, prompt_states
from tests.fusion.test_fuse import hooks, state
from tests.tiny import tiny_concept

PLAN = DistillPlan(
    steps=60, rate=3e-3, batch_size=4, prompts=["a photo of {concept}", "{concept} in the rain"],
    captions=["", "a photo of a dog"], walk_steps=4, ordinary=0.15,
)  # fmt: skip


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=i)) for i, name in enumerate(("duck", "fox"))]


def test_without_changes_of_the_unet_there_is_nothing_to_distill(tiny: Base) -> None:
    start = weight_average(tiny, [Member(tiny_concept(tiny, "duck"), unet=0.0)])
    assert distill(tiny, [Member(tiny_concept(tiny, "duck"), unet=0.0)], start, PLAN) is start


def test_distilling_brings_the_fused_model_closer_to_both_concepts(tiny: Base, members: list[Member]) -> None:
    start = weight_average(tiny, members)
    before, hooks_before = state(tiny), hooks(tiny)
    flags = [p.requires_grad for p in tiny.unet.parameters()]
    refined = distill(tiny, members, start, PLAN)
    after = state(tiny)
    assert all(torch.equal(after[key], before[key]) for key in before) and hooks(tiny) == hooks_before
    assert [p.requires_grad for p in tiny.unet.parameters()] == flags
    assert all(p.grad is None for p in tiny.unet.parameters())

    for lessons in write_curriculum(tiny, members, PLAN).concepts:  # what the first round taught is still known
        assert error_at(lessons, tiny, refined) < 0.5 * error_at(lessons, tiny, start)


def error_at(lessons: Lessons, base: Base, fusion: Fusion) -> float:
    """Mean squared error of a fused model where its teachers' predictions are known."""
    fused, attachment = fusion.attach(base)
    with attachment, torch.no_grad(), layerwise_states(fused.unet):
        text = prompt_states(fused, list(lessons.prompts)).for_unet(lessons.latents)
        predicted = fused.unet(lessons.latents, lessons.times, **text).sample
    return float((predicted - lessons.targets).square().mean())


def test_only_the_unet_moves_and_shapes_stay(tiny: Base, members: list[Member]) -> None:
    start = weight_average(tiny, members)
    refined = distill(tiny, members, start, dataclasses.replace(PLAN, steps=2))
    assert refined.changes.keys() == start.changes.keys()
    stages = {layer.path: layer.stage for layer in layers_of(tiny).values()}
    for path, change in refined.changes.items():
        assert change.shape == start.changes[path].shape
        assert torch.equal(change, start.changes[path]) == (stages[path] is Stage.TEXT)


def test_the_same_seed_gives_the_same_model(tiny: Base, members: list[Member]) -> None:
    plan = dataclasses.replace(PLAN, steps=3)
    once, again = (distill(tiny, members, weight_average(tiny, members), plan) for _ in range(2))
    assert all(torch.equal(once.changes[path], again.changes[path]) for path in once.changes)


def test_a_step_in_several_passes_is_the_same_step(tiny: Base, members: list[Member]) -> None:
    plan = dataclasses.replace(PLAN, steps=2, batch_size=5, rounds=1)
    once, split = (
        distill(tiny, members, weight_average(tiny, members), dataclasses.replace(plan, accumulation=passes))
        for passes in (1, 3)
    )
    # Adam's first steps have the rate's size whatever the gradient's, so rounding shows where there is nothing else.
    for path, change in once.changes.items():
        assert float((change - split.changes[path]).abs().mean()) < 0.02 * plan.rate
    assert any(not torch.equal(change, split.changes[path]) for path, change in once.changes.items())


def test_every_point_of_every_walk_is_a_lesson(tiny: Base, members: list[Member]) -> None:
    plan = dataclasses.replace(PLAN, rounds=1)
    curriculum = write_curriculum(tiny, members, plan)
    per_concept = plan.walk_steps * len(plan.prompts)
    assert [len(lessons) for lessons in curriculum.concepts] == [per_concept] * 2
    assert len(curriculum.empty) == 2 * math.ceil(per_concept / 3) and set(curriculum.empty.prompts) == {""}
    assert len(curriculum.ordinary) == plan.walk_steps * len(plan.captions)
    assert len(curriculum.scale) == plan.walk_steps and min(curriculum.scale.values()) > 0


def test_the_empty_prompt_is_taught_by_each_concepts_own_model(tiny: Base, members: list[Member]) -> None:
    empty = write_curriculum(tiny, members, dataclasses.replace(PLAN, rounds=1)).empty
    half = len(empty) // 2
    for number, part in enumerate((slice(half), slice(half, None))):
        own, other = (predicted(tiny, members[i], empty.part(part)) for i in (number, 1 - number))
        targets = empty.targets[part]
        error = (targets - own).square().mean() / (targets - other).square().mean()
        assert error < 0.1  # bf16, where the processor has it


@torch.no_grad()
def predicted(base: Base, member: Member, lessons: Lessons) -> torch.Tensor:
    """What a concept's own model predicts there."""
    with member.in_place(base) as tuned, layerwise_states(tuned.unet):
        states = prompt_states(tuned, list(lessons.prompts))
        return tuned.unet(lessons.latents, lessons.times, **states.for_unet(lessons.latents)).sample


def test_rounds_share_the_prompts(tiny: Base, members: list[Member]) -> None:
    plan = dataclasses.replace(PLAN, rounds=2)
    first, second = (write_curriculum(tiny, members, plan, number) for number in range(2))
    assert {*first.concepts[0].prompts, *second.concepts[0].prompts} == {
        prompt.format(concept=members[0].concept.text) for prompt in plan.prompts
    }
    both = first.with_more(second)
    assert len(both.concepts[1]) == plan.walk_steps * len(plan.prompts)
    assert len(both.ordinary) == plan.walk_steps * len(plan.captions)
    assert both.scale == first.scale  # errors stay in their unit

    few = dataclasses.replace(PLAN, rounds=3)  # more rounds than prompts: the last has all of them
    assert len(write_curriculum(tiny, members, few, 2).concepts[0]) == plan.walk_steps * len(plan.prompts)


def test_later_lessons_are_where_the_fused_model_goes_and_say_what_the_own_model_predicts_there(
    tiny: Base, members: list[Member]
) -> None:
    plan = dataclasses.replace(PLAN, rounds=1)
    fusion = weight_average(tiny, members)
    own = write_curriculum(tiny, members, plan).concepts[1]
    lessons = write_curriculum(tiny, members, plan, walker=partial(fusion.in_place, tiny)).concepts[1]
    assert torch.equal(lessons.times, own.times)
    starts = lessons.times == lessons.times.max()
    torch.testing.assert_close(lessons.latents[starts], own.latents[starts])  # the same start noise ...
    assert not torch.allclose(lessons.latents[~starts], own.latents[~starts])  # ... leads elsewhere
    torch.testing.assert_close(lessons.targets[starts], own.targets[starts], rtol=1e-2, atol=1e-2)
    expected = predicted(tiny, members[1], lessons)
    error = (lessons.targets - expected).square().mean() / expected.square().mean()
    assert error < 1e-3  # bf16, where the processor has it


def test_errors_count_most_where_the_network_changes_predictions(tiny: Base, members: list[Member]) -> None:
    lessons = write_curriculum(tiny, members, dataclasses.replace(PLAN, rounds=1)).concepts[0]
    torch.testing.assert_close(lessons.weights.mean(dim=(1, 2, 3)), torch.ones(len(lessons)))
    with members[0].in_place(tiny, stages=()) as untuned, torch.no_grad():
        states = prompt_states(untuned, list(lessons.prompts))
        with layerwise_states(untuned.unet):
            plain = untuned.unet(lessons.latents, lessons.times, **states.for_unet(lessons.latents)).sample
    change = (lessons.targets - plain).square().mean(1).flatten(1)
    together = torch.stack([change, lessons.weights.flatten(1)], 1)
    assert min(float(torch.corrcoef(pair)[0, 1]) for pair in together) > 0.3


@pytest.mark.parametrize(("given", "concepts", "steps"), [(None, 1, 225), (None, 3, 225), (None, 8, 600), (7, 8, 7)])
def test_more_concepts_are_distilled_for_longer(given: int | None, concepts: int, steps: int) -> None:
    assert RefineOptions(steps=given).steps_of(concepts) == steps
