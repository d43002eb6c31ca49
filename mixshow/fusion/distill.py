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

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixshow.core.attachment import Attachment
from mixshow.core.progress import progress_bar
from mixshow.core.seeding import derived_seed, torch_generator
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion.fuse import Fusion
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.members import Member
from mixshow.fusion.prompts import CAPTIONS, TEXT, filled
from mixshow.models import Base, PromptStates, make_scheduler, prompt_states
from mixshow.sampling.denoise import denoise
from mixshow.sampling.generate import latent_size, start_noise
from mixshow.sampling.precision import Precision, autocast

_WALKED_TOGETHER = 8  # pictures
_WARMUP = 20  # steps
_EMPTY_EVERY = 3  # points: of so many the empty prompt is taught at one, which are still more than are drawn
# Of an error where the concept's network changes nothing, beside 1 where it changes as much as on average; at most.
_LEAST_WEIGHT, _MOST_WEIGHT = 0.2, 5.0


@dataclasses.dataclass(frozen=True)
class DistillPlan:
    """How long and on what.

    Attributes:
        steps: optimizer steps.
        rate: AdamW's highest rate; it rises over the first steps and falls to 0 along a cosine.
        batch_size: predictions per step.
        ordinary: share of a batch in which the base teaches ordinary captions.
        empty: share in which the base teaches the empty prompt on the concepts' pictures.
        rounds: how often lessons are written: at first along pictures of the concepts' own models, for every second
            prompt, then along those of the fused model as it is by then, for every `rounds`-th.
        prompts: with `{concept}`; one picture each is denoised.
        captions: ordinary ones.
        walk_steps: denoising steps of a picture; all are learned from.
        guidance: with which the pictures are denoised.
        width: pixels; None: the base's native side. `height` likewise.
    """

    steps: int = 300
    rate: float = 5e-4
    batch_size: int = 8
    ordinary: float = 0.15
    empty: float = 0.1
    rounds: int = 3
    prompts: Sequence[str] = TEXT
    captions: Sequence[str] = CAPTIONS
    walk_steps: int = 12
    guidance: float = 5.0
    width: int | None = None
    height: int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Lessons:
    """Points at which a teacher's predictions are known; `[points, ...]` each.

    Attributes:
        latents: what the UNet reads.
        times: timesteps.
        prompts: of each point.
        targets: the teacher's predictions.
        weights: how much an error counts at each position, `[points, 1, height, width]`, on average 1.
    """

    latents: Tensor
    times: Tensor
    prompts: Sequence[str]
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.prompts)

    def one(self, generator: torch.Generator) -> Lessons:
        """One of them by chance."""
        row = int(torch.randint(len(self), (1,), generator=generator))
        return self.part(slice(row, row + 1))

    def part(self, part: slice) -> Lessons:
        """Some of them."""
        return Lessons(self.latents[part], self.times[part], self.prompts[part], self.targets[part], self.weights[part])


@dataclasses.dataclass(frozen=True, eq=False)
class Curriculum:
    """All lessons of a fusion.

    Attributes:
        concepts: one set per member, taught by its own model.
        empty: some of these points with the empty prompt, taught by the base.
        ordinary: ordinary captions, taught by the base.
        scale: by timestep, the mean squared change that the concepts' networks make to predictions. Errors are counted
            in this unit, so that no noise level and no loud concept wins.
    """

    concepts: Sequence[Lessons]
    empty: Lessons
    ordinary: Lessons
    scale: Mapping[float, float]

    def with_more(self, other: Curriculum) -> Curriculum:
        """The lessons of both; errors stay in the unit they were counted in."""
        concepts = [_joined(both) for both in zip(self.concepts, other.concepts)]
        ordinary = _joined([self.ordinary, other.ordinary])
        return Curriculum(concepts, _joined([self.empty, other.empty]), ordinary, {**other.scale, **self.scale})


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


def write_curriculum(
    base: Base,
    members: Sequence[Member],
    plan: DistillPlan,
    number: int = 0,
    *,
    fusion: Fusion | None = None,
    show_progress: bool = False,
) -> Curriculum:
    """Denoise the pictures to learn from and keep every point with the teachers' predictions.

    Args:
        number: of the round, which has its own share of the prompts and its own start noise; the first one's ordinary
            captions are for all.
        fusion: what denoises; None: each concept's own model.
    """
    concepts: list[Lessons] = []
    empty: list[Lessons] = []
    changes: dict[float, list[float]] = {}
    what = f"lessons {number + 1} of {plan.rounds}"
    with progress_bar(len(members) + 1, what, enabled=show_progress) as bar:
        for place, member in enumerate(members):
            every = min(2, plan.rounds) if number == 0 else plan.rounds
            prompts = filled(plan.prompts[number % every :: every] or plan.prompts, member.concept.text)
            with member.in_place(base) if fusion is None else _attached(base, fusion) as walker:
                walked = _lessons(walker, prompts, plan, (number, place))
            with member.in_place(base) as tuned:
                own = walked if fusion is None else dataclasses.replace(walked, targets=_predict(tuned, walked))
            with member.in_place(base, stages=()) as untuned:
                change = (own.targets - _predict(untuned, own)).square()
                some = own.part(slice(None, None, _EMPTY_EVERY))
                without = dataclasses.replace(some, prompts=[""] * len(some))
                empty.append(dataclasses.replace(without, targets=_predict(untuned, without)))
            for time, size in zip(own.times.tolist(), change.flatten(1).mean(1).tolist()):
                changes.setdefault(time, []).append(size)
            concepts.append(dataclasses.replace(own, weights=_weights(change)))
            bar.update()
        if number == 0:
            ordinary = _lessons(base, plan.captions, plan, (number, len(members)))
        else:
            ordinary = concepts[0].part(slice(0))  # none
        bar.update()
    scale = {time: sum(values) / len(values) for time, values in changes.items()}
    return Curriculum(concepts, _joined(empty), ordinary, scale)


def _weights(change: Tensor) -> Tensor:
    """Where an error counts, `[points, 1, height, width]`, from a concept's squared changes of predictions."""
    smooth = functional.avg_pool2d(change.mean(1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)
    share = smooth / smooth.mean(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(smooth.dtype).tiny)
    weights = _LEAST_WEIGHT + (1 - _LEAST_WEIGHT) * share.clamp(max=_MOST_WEIGHT)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)


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


@contextlib.contextmanager
def _attached(base: Base, fusion: Fusion) -> Iterator[Base]:
    fused, attachment = fusion.attach(base)
    with attachment:
        yield fused


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
    states = _states(fused, [prompt for lessons in sets for prompt in lessons.prompts])
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
            batch = _joined([sets[number].one(generator) for number in numbers])
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


def _lessons(model: Base, prompts: Sequence[str], plan: DistillPlan, number: tuple[int, int]) -> Lessons:
    """Every point of denoising one picture per prompt with guidance, with the model's own predictions there.

    Args:
        number: of the round and of the concept in it, for the start noise.
    """
    height, width = latent_size(model, plan.width, plan.height)
    parts = []
    for start in range(0, len(prompts), _WALKED_TOGETHER):
        batch = list(prompts[start : start + _WALKED_TOGETHER])
        points: list[tuple[Tensor, Tensor, Tensor]] = []

        def observe(_: nn.Module, arguments: tuple[Any, ...], output: Any, points: list[Any] = points) -> None:
            latents, time = arguments[:2]
            points.append((latents.chunk(2)[1], time, output.sample.chunk(2)[1]))

        seeds = [derived_seed(plan.seed, "distill", *number, start + i) for i in range(len(batch))]
        scheduler = make_scheduler(model)
        scheduler.set_timesteps(plan.walk_steps, device=model.device)
        states = prompt_states(model, batch)
        negative = prompt_states(model, [""]).expanded(len(states))
        with Attachment() as attachment:
            attachment.add_hook(model.unet.register_forward_hook(observe))
            denoise(
                model, scheduler, start_noise(model, seeds, height, width), states, negative, guidance=plan.guidance,
                precision=Precision.AUTO,
            )  # fmt: skip
        for latents, time, predicted in points:
            times = torch.as_tensor(time, device=latents.device).expand(len(batch))
            parts.append(Lessons(latents, times, batch, predicted.float(), torch.ones_like(latents[:, :1])))
    return _joined(parts)


@torch.no_grad()
def _predict(model: Base, lessons: Lessons) -> Tensor:
    """A model's predictions at the points of lessons."""
    states = _states(model, lessons.prompts)
    parts = []
    with layerwise_states(model.unet), autocast(lessons.latents.device, Precision.AUTO):
        for start in range(0, len(lessons), 2 * _WALKED_TOGETHER):
            part = slice(start, start + 2 * _WALKED_TOGETHER)
            text = PromptStates.stacked([states[prompt] for prompt in lessons.prompts[part]])
            latents = lessons.latents[part]
            parts.append(model.unet(latents, lessons.times[part], **text.for_unet(latents)).sample)
    return torch.cat(parts).float()


@torch.no_grad()
def _states(model: Base, prompts: Sequence[str]) -> dict[str, PromptStates]:
    """What the UNet reads of each prompt, without a leading axis."""
    distinct = list(dict.fromkeys(prompts))
    states = prompt_states(model, distinct, chunk=64)
    return {prompt: states[number] for number, prompt in enumerate(distinct)}


def _joined(parts: Sequence[Lessons]) -> Lessons:
    return Lessons(
        torch.cat([part.latents for part in parts]),
        torch.cat([part.times for part in parts]),
        [prompt for part in parts for prompt in part.prompts],
        torch.cat([part.targets for part in parts]),
        torch.cat([part.weights for part in parts]),
    )
