"""What a fused model does on prompts and latents that were not used for fusing.

For each concept, `E = ||eps_fused - eps_own|| / ||eps_base - eps_own||` over noise predictions: 0 is the concept's own
model, 1 the base that knows the concept's tokens but not its network. For the base, its drift on ordinary captions,
`||eps_fused - eps_base|| / ||eps_base||`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mixshow.core.progress import progress_bar
from mixshow.core.seeding import derived_seed
from mixshow.fusion.members import Member
from mixshow.fusion.prompts import HELD_OUT, HELD_OUT_CAPTIONS, filled
from mixshow.fusion.walks import Walk, predict, walk
from mixshow.models import Base


@dataclasses.dataclass(frozen=True)
class HeldOutPlan:
    """What is held out.

    Attributes:
        prompts: with `{concept}`.
        captions: ordinary ones, for the drift.
        steps: denoising steps along which predictions are compared.
        width: pixels; None: the base's native side. `height` likewise.
        seed: of the start noise.
    """

    prompts: Sequence[str] = HELD_OUT
    captions: Sequence[str] = HELD_OUT_CAPTIONS
    steps: int = 8
    width: int | None = None
    height: int | None = None
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class HeldOutScores:
    """What was found.

    Attributes:
        errors: E by concept; of one whose network changes nothing, which has no distance to compare with, `absolute`.
        absolute: `||eps_fused - eps_own|| / ||eps_own||` by concept.
        base_absolute: the same for the base, `||eps_base - eps_own|| / ||eps_own||`.
        drift: of the base on ordinary captions.
    """

    errors: Mapping[str, float]
    absolute: Mapping[str, float]
    base_absolute: Mapping[str, float]
    drift: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for the report."""
        return dataclasses.asdict(self)


class HeldOut:
    """Predictions of the concepts' own models and of the base, kept to score any number of fused models."""

    def __init__(
        self, base: Base, members: Sequence[Member], plan: HeldOutPlan | None = None, *, show_progress: bool = False
    ) -> None:
        plan = plan or HeldOutPlan()
        self._own: dict[str, Walk] = {}
        self._base: dict[str, Tensor] = {}
        with progress_bar(len(members) + 1, "held-out predictions", enabled=show_progress) as bar:
            for member in members:
                name = member.concept.text
                with member.in_place(base) as tuned:
                    self._own[name] = _walk(tuned, filled(list(plan.prompts), name), plan)
                with member.in_place(base, stages=()) as untuned:
                    self._base[name] = predict(untuned, self._own[name])
                bar.update()
            self._ordinary = _walk(base, list(plan.captions), plan)
            bar.update()

    def error(self, concept: str, model: Base) -> float:
        """E of one concept alone, of a model that is in place."""
        own = self._own[concept].predictions
        return self._error(concept, (predict(model, self._own[concept]) - own).norm())

    def _error(self, concept: str, distance: Tensor) -> float:
        own = self._own[concept].predictions
        apart = (self._base[concept] - own).norm()
        return _ratio(distance, own.norm() if apart == 0 else apart)

    def score(self, fused: Base) -> HeldOutScores:
        """Score a fused model that is in place."""
        errors, absolute, base_absolute = {}, {}, {}
        for name, own in self._own.items():
            distance = (predict(fused, own) - own.predictions).norm()
            base_distance = (self._base[name] - own.predictions).norm()
            errors[name] = self._error(name, distance)
            absolute[name] = _ratio(distance, own.predictions.norm())
            base_absolute[name] = _ratio(base_distance, own.predictions.norm())
        ordinary = self._ordinary.predictions
        drift = _ratio((predict(fused, self._ordinary) - ordinary).norm(), ordinary.norm())
        return HeldOutScores(errors, absolute, base_absolute, drift)


def _ratio(value: Tensor, reference: Tensor) -> float:
    """What is no number in either is none; beside nothing, anything is all."""
    return float(value / reference if reference != 0 else value.sign())


def _walk(base: Base, prompts: Sequence[str], plan: HeldOutPlan) -> Walk:
    seeds = [derived_seed(plan.seed, "held out", number) for number in range(len(prompts))]
    return walk(base, prompts, seeds, plan.steps, plan.width, plan.height)
