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
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from mixshow.core.attachment import Attachment
from mixshow.core.progress import progress_bar
from mixshow.core.seeding import torch_generator
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion.fuse import Fusion
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.lessons import Curriculum, DistillPlan, joined, states_of, write_curriculum
from mixshow.fusion.members import Member
from mixshow.models import Base, PromptStates
from mixshow.sampling.precision import Precision, autocast

_WARMUP = 20  # steps


def distill(
    base: Base, members: Sequence[Member], fusion: Fusion, plan: DistillPlan, *, show_progress: bool = False
) -> Fusion:
    """Refine a fusion. The base is unchanged afterwards.

    Args:
        fusion: where to start; the weights it changes in the UNet are the ones that move, its biases, embeddings and
            text encoder stay.

    Returns:
        A fusion with full-rank changes in the UNet.
    """
    curriculum: Curriculum | None = None
    optimizer_state: dict[str, Any] | None = None
    for number in range(plan.rounds):
        walker = fusion if number else None
        written = write_curriculum(base, members, plan, number, fusion=walker, show_progress=show_progress)
        curriculum = written if curriculum is None else curriculum.with_more(written)
        fusion, optimizer_state = _round(base, fusion, curriculum, plan, number, optimizer_state, show_progress)
    return fusion


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
    show_progress: bool,
) -> tuple[Fusion, dict[str, Any]]:
    """One round's optimizer steps; returns the refined fusion and the optimizer's state."""
    unet_layers = {layer.path: layer.module for layer in layers_of(base).values() if layer.stage is not Stage.TEXT}
    weights = {path: _weight(unet_layers[path]) for path in fusion.changes if path in unet_layers}
    fused, attachment = fusion.attach(base)
    with attachment:
        for weight in weights.values():
            _make_trainable(weight, attachment)
        optimizer = torch.optim.AdamW(weights.values(), lr=plan.rate, weight_decay=0.0)
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
        _train(fused, optimizer, curriculum, plan, number, show_progress)
        refined = {path: weight.detach().clone() for path, weight in weights.items()}
    changes = dict(fusion.changes)
    for path, weight in weights.items():
        before = changes[path]
        moved = (refined[path] - weight.detach().float()).reshape(len(before), -1).to(before)
        changes[path] = torch.cat([moved, before[:, moved.shape[1] :]], dim=1)  # the bias, if any, stays
    return dataclasses.replace(fusion, changes=changes), optimizer.state_dict()


def _train(
    fused: Base,
    optimizer: torch.optim.Optimizer,
    curriculum: Curriculum,
    plan: DistillPlan,
    number: int,
    show_progress: bool,
) -> None:
    sets = [*curriculum.concepts, curriculum.empty, curriculum.ordinary]
    taught = 1 - plan.empty - plan.ordinary
    shares = torch.tensor([taught / len(curriculum.concepts)] * len(curriculum.concepts) + [plan.empty, plan.ordinary])
    states = states_of(fused, [prompt for lessons in sets for prompt in lessons.prompts])
    floor = 1e-3 * max(curriculum.scale.values())
    generator = torch_generator(plan.seed, "distill", number)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    steps = range(plan.steps * number // plan.rounds, plan.steps * (number + 1) // plan.rounds)
    what = f"distilling {number + 1} of {plan.rounds}"
    with progress_bar(len(steps), what, enabled=show_progress) as bar, layerwise_states(fused.unet):
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
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            bar.update()
            if step % 10 == 0:
                bar.set_postfix(error=f"{math.sqrt(float(loss.detach())):.3f}", refresh=False)


def _rate_at(step: int, plan: DistillPlan) -> float:
    return plan.rate * min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
