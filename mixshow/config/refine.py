"""Options of `refine:` in `mixshow fuse`: what improves the solved model as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from mixshow.config.load import Section, option

_STEPS_PER_CONCEPT, _FEWEST_STEPS = 75, 225


@dataclasses.dataclass(frozen=True)
class RefineOptions(Section):
    method: Literal["none", "distill", "rerecord"] = option(
        "distill: move the UNet's fused weights until they predict noise as the concepts' own models do; rerecord: "
        "record inputs through the fused model and solve again",
        "distill",
    )
    steps: int | None = option(
        f"optimizer steps of distill; null: {_STEPS_PER_CONCEPT} for each concept, at least {_FEWEST_STEPS}", None
    )
    rate: float = option("highest learning rate of distill", 5e-4)
    batch_size: int = option("predictions per step of distill", 8)
    accumulation: int = option(
        "passes that a step's predictions are split into, at most one each: more need less memory", 1
    )
    rounds: int = option(
        "how often pictures to distill on are made: first by the concepts' own models, then by the fused one", 3
    )
    low_rank: bool | None = option(
        "distill within the factors of the solution, with format=lora cut to lora.rank and lora.energy before, so that "
        "a network file holds the result exactly; null: with format=lora",
        None,
    )
    prompts: list[str] | None = option("prompts with {concept} to distill on; null: the built-in list", None)
    seed: int = option("of the pictures distilled on", 0)
    passes: int = option("of rerecord at most", 4)
    stop: bool | None = option(
        "stop when the mean error on validation prompts no longer falls, and keep the best; null: in rerecord only",
        None,
    )
    validation: list[str] | None = option(
        "prompts with {concept} to stop by, others than the report's; null: the built-in list", None
    )
    every: int = option("steps of distill between two looks at the validation prompts", 50)
    patience: int = option("looks in a row without a lower error after which to stop", 2)
    tolerance: float = option("an error is lower when it is so by this share", 0.01)

    @property
    def stops(self) -> bool:
        """Whether to stop by validation prompts."""
        return self.method == "rerecord" if self.stop is None else self.stop

    def steps_of(self, concepts: int) -> int:
        """Optimizer steps of distill for so many concepts."""
        return max(_FEWEST_STEPS, _STEPS_PER_CONCEPT * concepts) if self.steps is None else self.steps

    def problems(self) -> list[str]:
        return [
            *(
                f"{name}: expected at least 1, found {value}"
                for name in ("steps", "batch_size", "accumulation", "rounds", "passes", "every", "patience")
                if (value := getattr(self, name)) is not None and value < 1
            ),
            *([] if self.rate > 0 else [f"rate: expected more than 0, found {self.rate}"]),
            *([] if 0 <= self.tolerance < 1 else [f"tolerance: expected 0 to 1, found {self.tolerance}"]),
            *template_problems("prompts", self.prompts),
            *template_problems("validation", self.validation),
        ]


def template_problems(name: str, templates: Sequence[str] | None) -> list[str]:
    """What is wrong with prompts that stand for every concept, one sentence each."""
    if templates is None:
        return []
    if not templates:
        return [f"{name}: expected at least one"]
    return [
        f"{name}[{i}]: expected {{concept}} in it, found '{text}'"
        for i, text in enumerate(templates)
        if "{concept}" not in text
    ]
