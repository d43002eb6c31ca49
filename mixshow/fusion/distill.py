"""Refining a fused model as a whole: it learns to predict noise as each concept's own model does.

The least-squares problems treat every layer on its own; what their errors do together only the whole model shows.
Distillation (arXiv 1503.02531) starts from their solution and moves the UNet's fused weights so that, along pictures
that the concepts' own models denoise, the fused model predicts what they predict. The base is a teacher too: for
ordinary captions, and for the empty prompt everywhere, so that guidance leads from the base to the concept.

A fused model that samples by itself soon stands at points where its teachers never were. Later on, therefore,
pictures are denoised by the fused model as it is by then, and its teachers say what they would have predicted there
(DAgger, arXiv 1011.0686). And as in training it is the subject that counts: an error weighs by how much the concept's
network changes the prediction at that place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.progress import log, progress_bar
from mixshow.core.seeding import torch_generator
from mixshow.edlora.interrupt import StepInterrupt
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion.distill_checkpoint import Checkpoints, Position, parameters_of
from mixshow.fusion.fuse import Fusion
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.lessons import Curriculum, DistillPlan, joined, states_of, write_curriculum
from mixshow.fusion.members import Member
from mixshow.fusion.stopping import EarlyStopping
from mixshow.models import Base, PromptStates
from mixshow.sampling.precision import Precision, autocast

Weights = dict[str, Tensor]  # of the UNet's changed layers, by module path
_WARMUP = 20  # steps


def distill(
    base: Base,
    members: Sequence[Member],
    fusion: Fusion,
    plan: DistillPlan,
    *,
    stopping: EarlyStopping[Weights] | None = None,
    checkpoints: Checkpoints | None = None,
    show_progress: bool = False,
) -> Fusion:
    """Refine a fusion. The base is unchanged afterwards.

    Args:
        fusion: where to start; the weights it changes in the UNet are the ones that move, its biases, embeddings and
            text encoder stay.
        stopping: ends earlier and chooses the step, the start included; None: the last step is the result.
        checkpoints: where an interrupted run goes on from, and this one leaves what it did.

    Returns:
        A fusion with full-rank changes in the UNet, unless the start was the best.
    """
    if not _unet_weights(base, fusion):
        log.info("no concept changes the UNet: nothing to distill")
        return fusion
    start = fusion
    curriculum: Curriculum | None = None
    optimizer_state: dict[str, Any] | None = None
    left = None if checkpoints is None else checkpoints.read(base.device)
    for number in range(left.number if left else 0, plan.rounds):
        if left is not None and number == left.number:
            curriculum = left.curriculum
        else:
            walker, left = fusion if number else None, None
            written = write_curriculum(base, members, plan, number, fusion=walker, show_progress=show_progress)
            curriculum = written if curriculum is None else curriculum.with_more(written)
        fusion, optimizer_state, stopped = _round(
            base, fusion, curriculum, plan, number, optimizer_state, stopping, checkpoints, left, show_progress
        )
        if stopped:
            break
    if stopping is None:
        return fusion
    assert stopping.best is not None
    look, weights = stopping.best
    chosen = start if look.at == 0 else _moved(base, start, weights)
    return dataclasses.replace(chosen, refining=stopping.to_json())


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _make_trainable(weight: nn.Parameter, attachment: Attachment) -> None:
    """Let a weight that the attachment put in place learn in float32, until it is detached."""
    attachment.add(partial(weight.requires_grad_, weight.requires_grad))
    attachment.add(partial(setattr, weight, "grad", None))
    weight.data = weight.data.float()
    weight.requires_grad_(True)


def _round(
    base: Base,
    fusion: Fusion,
    curriculum: Curriculum,
    plan: DistillPlan,
    number: int,
    optimizer_state: dict[str, Any] | None,
    stopping: EarlyStopping[Weights] | None,
    checkpoints: Checkpoints | None,
    left: Position | None,
    show_progress: bool,
) -> tuple[Fusion, dict[str, Any], bool]:
    """One round's optimizer steps; returns the refined fusion, the optimizer's state and whether to stop here."""
    weights = _unet_weights(base, fusion)
    with fusion.in_place(base) as fused, Attachment() as attachment:
        for weight in weights.values():
            _make_trainable(weight, attachment)
        optimizer = torch.optim.AdamW(weights.values(), lr=plan.rate, weight_decay=0.0)
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
        if left is not None:
            left.restore(optimizer)
            if stopping is not None and left.stopping is not None:
                stopping.load_state_dict(left.stopping)

        def values() -> Weights:
            return {path: weight.detach().clone() for path, weight in weights.items()}

        def look(step: int) -> bool:
            return stopping is not None and stopping.look(fused, step, values)

        def keep(step: int, generator: torch.Generator, *, ended: bool = False, now: bool = False) -> None:
            if checkpoints is not None and (now or checkpoints.due):
                checkpoints.write(number, step, optimizer, generator, curriculum, stopping, ended=ended)

        stopped = (number == 0 and look(0)) if left is None else left.ended
        stopped = stopped or _train(fused, optimizer, curriculum, plan, number, look, keep, left, show_progress)
        refined = values()
    return _moved(base, fusion, refined), optimizer.state_dict(), stopped


def _unet_weights(base: Base, fusion: Fusion) -> dict[str, nn.Parameter]:
    """The weights of the UNet that a fusion changes."""
    layers = {layer.path: layer.module for layer in layers_of(base).values() if layer.stage is not Stage.TEXT}
    return {path: _weight(layers[path]) for path in fusion.changes if path in layers}


def _moved(base: Base, fusion: Fusion, refined: Weights) -> Fusion:
    """The fusion with other weights; the base's are in place."""
    changes = dict(fusion.changes)
    for path, weight in _unet_weights(base, fusion).items():
        before = changes[path]
        moved = (refined[path].to(weight.device) - weight.detach().float()).reshape(len(before), -1).to(before)
        changes[path] = torch.cat([moved, before[:, moved.shape[1] :]], dim=1)  # the bias, if any, stays
    return dataclasses.replace(fusion, changes=changes)


def _train(
    fused: Base,
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
            batch = joined([sets[number].one(generator) for number in numbers])
            text = PromptStates.stacked([states[prompt] for prompt in batch.prompts])
            with autocast(batch.latents.device, Precision.AUTO):
                predicted = fused.unet(batch.latents, batch.times, **text.for_unet(batch.latents)).sample
            unit = torch.tensor([max(curriculum.scale.get(time, floor), floor) for time in batch.times.tolist()])
            errors = ((predicted.float() - batch.targets).square() * batch.weights).flatten(1).mean(1)
            loss = (errors / unit.to(errors.device)).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters_of(optimizer), 1.0)
            optimizer.step()
            bar.update()
            if step % 10 == 0:
                bar.set_postfix(error=f"{math.sqrt(float(loss.detach())):.3f}", refresh=False)
            ended = ((step + 1) % plan.look_every == 0 or step + 1 == plan.steps) and look(step + 1)
            keep(step + 1, generator, ended=ended, now=interrupt.requested)
            if interrupt.requested:
                raise KeyboardInterrupt
            if ended:
                return True
    return False


def _rate_at(step: int, plan: DistillPlan) -> float:
    return plan.rate * min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
