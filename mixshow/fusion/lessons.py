"""What a fused model learns from in distilling: points of pictures with its teachers' predictions there.

Each concept's own model denoises some pictures, later the fused model does; every point of the way is a lesson.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mixshow.core.attachment import Attachment
from mixshow.core.progress import progress_bar
from mixshow.core.seeding import derived_seed
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion.members import Member
from mixshow.fusion.prompts import ORDINARY, TEXT, filled
from mixshow.models import Base, PromptStates, make_scheduler, prompt_states
from mixshow.sampling.denoise import denoise
from mixshow.sampling.generate import latent_size, start_noise
from mixshow.sampling.precision import Precision, autocast

Walker = Callable[[], AbstractContextManager[Base]]
_WALKED_TOGETHER = 8  # pictures
EMPTY_EVERY = 3  # points: of so many the empty prompt is taught at one, which are still more than are drawn
# Of an error where the concept's network changes nothing, beside 1 where it changes as much as on average; at most.
_LEAST_WEIGHT, _MOST_WEIGHT = 0.2, 5.0


@dataclasses.dataclass(frozen=True)
class DistillPlan:
    """How long and on what.

    Attributes:
        steps: optimizer steps.
        rate: AdamW's highest rate; it rises over the first steps and falls to 0 along a cosine.
        batch_size: predictions per step.
        accumulation: passes with gradients that these are split into, for less memory.
        ordinary: share of a batch in which the base teaches ordinary captions.
        empty: share in which concepts' own models teach the empty prompt on their pictures.
        rounds: how often lessons are written: at first along pictures of the concepts' own models, for every second
            prompt, then along those of the fused model as it is by then, for every `rounds`-th.
        prompts: with `{concept}`; one picture each is denoised.
        captions: ordinary ones.
        walk_steps: denoising steps of a picture; all are learned from.
        guidance: with which the pictures are denoised.
        look_every: steps between two looks at validation prompts, where there are any.
        width: pixels; None: the base's native side. `height` likewise.
    """

    steps: int = 225
    rate: float = 5e-4
    batch_size: int = 8
    accumulation: int = 1
    ordinary: float = 0.4
    empty: float = 0.1
    rounds: int = 3
    prompts: Sequence[str] = TEXT
    captions: Sequence[str] = ORDINARY
    walk_steps: int = 12
    guidance: float = 5.0
    look_every: int = 50
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
        empty: some of these points with the empty prompt, each taught by the concept's own model.
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
        concepts = [joined(both) for both in zip(self.concepts, other.concepts)]
        ordinary = joined([self.ordinary, other.ordinary])
        return Curriculum(concepts, joined([self.empty, other.empty]), ordinary, {**other.scale, **self.scale})


def write_curriculum(
    base: Base,
    members: Sequence[Member],
    plan: DistillPlan,
    number: int = 0,
    *,
    walker: Walker | None = None,
    show_progress: bool = False,
) -> Curriculum:
    """Denoise the pictures to learn from and keep every point with the teachers' predictions.

    Args:
        number: of the round, which has its own share of the prompts and its own start noise; the first one's ordinary
            captions are for all.
        walker: puts in place what denoises; None: each concept's own model.
    """
    concepts: list[Lessons] = []
    empty: list[Lessons] = []
    changes: dict[float, list[float]] = {}
    what = f"lessons {number + 1} of {plan.rounds}"
    with progress_bar(len(members) + 1, what, enabled=show_progress) as bar:
        for place, member in enumerate(members):
            prompts = filled(lesson_prompts(plan, number), member.concept.text)
            with member.in_place(base) if walker is None else walker() as model:
                walked = _lessons(model, prompts, plan, (number, place))
            with member.in_place(base) as tuned:
                own = walked if walker is None else dataclasses.replace(walked, targets=_predict(tuned, walked))
                some = own.part(slice(None, None, EMPTY_EVERY))
                without = dataclasses.replace(some, prompts=[""] * len(some))
                empty.append(dataclasses.replace(without, targets=_predict(tuned, without)))
            with member.in_place(base, stages=()) as untuned:
                change = (own.targets - _predict(untuned, own)).square()
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
    return Curriculum(concepts, joined(empty), ordinary, scale)


def lesson_prompts(plan: DistillPlan, number: int) -> Sequence[str]:
    """The prompts of a round."""
    every = min(2, plan.rounds) if number == 0 else plan.rounds
    return plan.prompts[number % every :: every] or plan.prompts


def _weights(change: Tensor) -> Tensor:
    """Where an error counts, `[points, 1, height, width]`, from a concept's squared changes of predictions."""
    smooth = functional.avg_pool2d(change.mean(1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)
    share = smooth / smooth.mean(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(smooth.dtype).tiny)
    weights = _LEAST_WEIGHT + (1 - _LEAST_WEIGHT) * share.clamp(max=_MOST_WEIGHT)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)


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
    return joined(parts)


@torch.no_grad()
def _predict(model: Base, lessons: Lessons) -> Tensor:
    """A model's predictions at the points of lessons."""
    states = states_of(model, lessons.prompts)
    parts = []
    with layerwise_states(model.unet), autocast(lessons.latents.device, Precision.AUTO):
        for start in range(0, len(lessons), 2 * _WALKED_TOGETHER):
            part = slice(start, start + 2 * _WALKED_TOGETHER)
            text = PromptStates.stacked([states[prompt] for prompt in lessons.prompts[part]])
            latents = lessons.latents[part]
            parts.append(model.unet(latents, lessons.times[part], **text.for_unet(latents)).sample)
    return torch.cat(parts).float()


@torch.no_grad()
def states_of(model: Base, prompts: Sequence[str]) -> dict[str, PromptStates]:
    """What the UNet reads of each prompt, without a leading axis."""
    distinct = list(dict.fromkeys(prompts))
    states = prompt_states(model, distinct, chunk=64)
    return {prompt: states[number] for number, prompt in enumerate(distinct)}


def joined(parts: Sequence[Lessons]) -> Lessons:
    return Lessons(
        torch.cat([part.latents for part in parts]),
        torch.cat([part.times for part in parts]),
        [prompt for part in parts for prompt in part.prompts],
        torch.cat([part.targets for part in parts]),
        torch.cat([part.weights for part in parts]),
    )
