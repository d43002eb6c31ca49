"""Refining a fused model as a whole: it learns to predict noise as each concept's own model does.

The least-squares problems treat every layer on its own; what their errors do together only the whole model shows.
Distillation (arXiv 1503.02531) starts from their solution and moves the UNet's fused weights so that, along pictures
that the concepts' own models denoise, the fused model predicts what they predict, with the empty prompt too: guidance
leads away from that, and would otherwise strengthen all that a concept's network does whatever the prompt, so that
prompts count less. The base is a teacher too, for ordinary captions.

A fused model that samples by itself soon stands at points where its teachers never were. Later on, therefore,
pictures are denoised by the fused model as it is by then, and its teachers say what they would have predicted there
(DAgger, arXiv 1011.0686). And as in training it is the subject that counts: an error weighs by how much the concept's
network changes the prediction at that place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.core.progress import log, progress_bar
from mixshow.core.seeding import torch_generator
from mixshow.edlora.interrupt import StepInterrupt
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion.distill_checkpoint import Checkpoints, Position
from mixshow.fusion.factors import Factors
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.lessons import Curriculum, DistillPlan, joined, states_of, write_curriculum
from mixshow.fusion.members import Member
from mixshow.fusion.moving import MovingWeights
from mixshow.fusion.own_and_fused import UNET
from mixshow.fusion.stopping import EarlyStopping
from mixshow.models import Base, PromptStates
from mixshow.sampling.precision import Precision, autocast

_WARMUP = 20  # steps


def distill(
    base: Base,
    members: Sequence[Member],
    fusion: Fusion,
    plan: DistillPlan,
    *,
    factors: Mapping[str, Factors] | None = None,
    stopping: EarlyStopping[list[Tensor]] | None = None,
    checkpoints: Checkpoints | None = None,
    show_progress: bool = False,
) -> Fusion:
    """Refine a fusion. The base is unchanged afterwards.

    Args:
        fusion: where to start; the weights it changes in the UNet are the ones that move, its biases, embeddings and
            text encoder stay.
        factors: of its changes by module path; these keep their rank. None: changes of the UNet get full rank.
        stopping: ends earlier and chooses the step, the start included; None: the last step is the result.
        checkpoints: where an interrupted run goes on from, and this one leaves what it did.

    Raises:
        MixshowError: a concept's own model predicts what is no number.
    """
    moving = MovingWeights(base, fusion, factors)
    if not moving or not any(member.changes_anything(base, UNET) for member in members):
        log.info("no concept changes the UNet: nothing to distill")
        return fusion
    optimizer = torch.optim.AdamW(moving.parameters(), lr=plan.rate, weight_decay=0.0)
    curriculum: Curriculum | None = None
    left = None if checkpoints is None else checkpoints.read(base.device)
    if left is not None:
        left.restore(optimizer, stopping)
    for number in range(0 if left is None else left.number, plan.rounds):
        if left is not None and left.number == number:
            curriculum = left.curriculum
        else:
            left, walker = None, moving.in_place if number else None
            written = write_curriculum(base, members, plan, number, walker=walker, show_progress=show_progress)
            curriculum = written if curriculum is None else curriculum.with_more(written)
        if not math.isfinite(sum(curriculum.scale.values())):
            raise MixshowError(
                "refine: a concept's own model predicts values that are no numbers, of which nothing can be learned; "
                "lower its alpha"
            )
        with moving.in_place() as fused:

            def look(step: int, fused: Base = fused) -> bool:
                return stopping is not None and stopping.look(fused, step, moving.values)

            keep = partial(_keep, checkpoints, number, optimizer, curriculum, stopping)
            if (number == 0 and look(0)) if left is None else left.ended:
                break
            if _train(fused, moving, optimizer, curriculum, plan, number, look, keep, left, show_progress):
                break
    if stopping is None:
        return moving.fusion()
    assert stopping.best is not None
    at, best = stopping.best
    moving.set_values(best)
    return dataclasses.replace(fusion if at.at == 0 else moving.fusion(), refining=stopping.to_json())


def _keep(
    checkpoints: Checkpoints | None,
    number: int,
    optimizer: torch.optim.Optimizer,
    curriculum: Curriculum,
    stopping: EarlyStopping[list[Tensor]] | None,
    step: int,
    generator: torch.Generator,
    *,
    ended: bool = False,
    now: bool = False,
) -> None:
    """Leave where it stands after a step, when it is time."""
    if checkpoints is not None and (now or checkpoints.due):
        checkpoints.write(number, step, optimizer, generator, curriculum, stopping, ended=ended)


def _train(
    fused: Base,
    moving: MovingWeights,
    optimizer: torch.optim.Optimizer,
    curriculum: Curriculum,
    plan: DistillPlan,
    number: int,
    look: Callable[[int], bool],
    keep: Callable[..., None],
    left: Position | None,
    show_progress: bool,
) -> bool:
    """The steps of one round, or what is left of them; whether a look, every so many of them, ended it."""
    sets = [*curriculum.concepts, curriculum.empty, curriculum.ordinary]
    taught = 1 - plan.empty - plan.ordinary
    shares = torch.tensor([taught / len(curriculum.concepts)] * len(curriculum.concepts) + [plan.empty, plan.ordinary])
    states = states_of(fused, [prompt for lessons in sets for prompt in lessons.prompts])
    floor = 1e-3 * max(curriculum.scale.values())
    generator = torch_generator(plan.seed, "distill", number)
    parameters, together = moving.parameters(), -(-plan.batch_size // plan.accumulation)
    steps = range(plan.steps * number // plan.rounds, plan.steps * (number + 1) // plan.rounds)
    if left is not None:
        generator.set_state(left.generator)
        steps = range(left.step, steps.stop)
    keep(steps.start, generator)  # the lessons may have taken long
    what = f"distilling {number + 1} of {plan.rounds}"
    with (
        progress_bar(len(steps), what, enabled=show_progress) as bar,
        layerwise_states(fused.unet),
        StepInterrupt() as interrupt,
    ):
        for step in steps:
            for group in optimizer.param_groups:
                group["lr"] = _rate_at(step, plan)
            numbers = torch.multinomial(shares, plan.batch_size, replacement=True, generator=generator).tolist()
            batch = [sets[number].one(generator) for number in numbers]
            loss = 0.0
            for start in range(0, len(batch), together):
                part = joined(batch[start : start + together])
                text = PromptStates.stacked([states[prompt] for prompt in part.prompts])
                with autocast(part.latents.device, Precision.AUTO):
                    predicted = fused.unet(part.latents, part.times, **text.for_unet(part.latents)).sample
                unit = torch.tensor([max(curriculum.scale.get(time, floor), floor) for time in part.times.tolist()])
                errors = ((predicted.float() - part.targets).square() * part.weights).flatten(1).mean(1)
                share = (errors / unit.to(errors.device)).sum() / len(batch)
                share.backward()
                loss += share.detach()
            moving.take_gradients()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            moving.place()
            bar.update()
            if step % 10 == 0:
                bar.set_postfix(error=f"{math.sqrt(float(loss)):.3f}", refresh=False)
            ended = ((step + 1) % plan.look_every == 0 or step + 1 == plan.steps) and look(step + 1)
            keep(step + 1, generator, ended=ended, now=interrupt.requested)
            if interrupt.requested:
                raise KeyboardInterrupt
            if ended:
                return True
    return False


def _rate_at(step: int, plan: DistillPlan) -> float:
    return plan.rate * min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
