"""Options of one region of a scene."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from mixshow.config.load import Section, option
from mixshow.config.network import NetworkOptions

_SHAPES = ("box", "polygon", "mask", "colour", "person", "png", "from_")


@dataclasses.dataclass(frozen=True)
class RegionOptions(Section):
    """A part of the picture: one of `box`, `polygon`, `mask`, `colour`, `person` and `png`, or the scene's `layout` or
    `boxes` have a place for it."""

    prompt: str = option("what is in the region; {concept} stands for the tokens of 'concept'")
    concept: str | None = option("name of a concept: pip, of <pip1> <pip2>", None)
    box: tuple[float, float, float, float] | None = option(
        "[left, top, right, bottom]: fractions of the picture when none is above 1, otherwise pixels", None
    )
    polygon: list[tuple[float, float]] | None = option(
        "corners [[x, y], ...]: fractions of the picture when none is above 1, otherwise pixels", None
    )
    mask: Path | None = option("a grey picture, white inside; one of another size is stretched over the scene", None)
    colour: str | None = option("its colour in the picture of 'masks', in quotes: \"#ff0000\"", None)
    person: int | str | None = option("a box around this person of the pose: a number from 1, or a name", None)
    png: str | None = option("a mask in base64, as pictures that mixshow made carry it", None)
    from_: Literal["attention"] | None = option(
        "'attention': where the picture attends to its concept while the first steps follow the scene's prompt", None
    )
    threshold: float = option("from attention: part of the most attention from which on a place is inside, 0 to 1", 0.4)
    after: int = option("from attention: steps after which the area is fixed", 5)
    negative_prompt: str | None = option("what is not; null: the scene's negative prompt", None)
    base_ratio: float = option("part of the attention that stays with the scene's base prompt, 0 to 1", 0.0)
    start: float = option("from which part of the steps on its prompt acts, 0.0 to 1.0; before, the base prompt", 0.0)
    end: float = option("up to which part of the steps its prompt acts; behind it, the base prompt", 1.0)
    guidance: float | None = option("classifier-free guidance in its area; null: the scene's", None)
    seed_offset: int = option("its area starts from the noise of the picture's seed plus this", 0)
    condition_weights: list[float] = option(
        "factors on the weights of the scene's conditions in its area, in their order, the pose's behind them",
        factory=list,
    )
    feather: float = option(
        "width of a soft border, half of it outside: pixels, or a fraction of the shorter side when below 1", 0.0
    )
    priority: float = option("where regions overlap the higher one is seen", 0.0)
    weight: float = option("where regions of one priority overlap they share the place by their weights", 1.0)

    network: NetworkOptions | None = option("a network file that acts in this region only; null: none", None)

    @property
    def shape(self) -> str | None:
        """The option its shape is in; None: it has none."""
        return next(iter(self._shapes), None)

    @property
    def _shapes(self) -> list[str]:
        return [name.removesuffix("_") for name in _SHAPES if getattr(self, name) is not None]

    def problems(self) -> list[str]:
        found = [*self._box_problems(), *self._polygon_problems(), *self._attention_problems()]
        given = self._shapes
        if len(given) > 1:
            found.append(f"{given[1]}: expected one shape, found {' and '.join(given)}")
        if isinstance(self.person, int) and self.person < 1:
            found.append(f"person: expected 1 (the first) or more, or a name, found {self.person}")
        if not 0 <= self.base_ratio <= 1:
            found.append(f"base_ratio: expected 0 to 1, found {self.base_ratio}")
        if not 0 <= self.feather < math.inf:
            found.append(f"feather: expected 0 or more pixels, found {self.feather}")
        if not 0 <= self.start < self.end <= 1:
            found.append(f"start, end: expected 0 <= start < end <= 1, found {self.start} and {self.end}")
        if self.guidance is not None and not 1 <= self.guidance < math.inf:
            found.append(f"guidance: expected 1 or more, found {self.guidance}")
        if not math.isfinite(self.priority):
            found.append(f"priority: expected a number, found {self.priority}")
        if not all(map(math.isfinite, self.condition_weights)):
            found.append(f"condition_weights: expected numbers, found {self.condition_weights}")
        if not 0 < self.weight < math.inf:
            found.append(f"weight: expected a number above 0, found {self.weight}")
        return found

    def _attention_problems(self) -> list[str]:
        found = []
        if not 0 < self.threshold < 1:
            found.append(f"threshold: expected a number between 0 and 1, found {self.threshold}")
        if self.after < 1:
            found.append(f"after: expected 1 step or more, found {self.after}")
        if self.from_ is not None and (self.seed_offset or self.guidance is not None or self.condition_weights):
            found.append(
                "from: expected no seed_offset, guidance or condition_weights, which act before the area is known"
            )
        return found

    def _box_problems(self) -> list[str]:
        if self.box is None:
            return []
        left, top, right, bottom = self.box
        found = []
        if right <= left or bottom <= top:
            found.append(f"box: expected left < right and top < bottom, found no area in {list(self.box)}")
        if max(self.box) > 1 and not all(float(number).is_integer() for number in self.box):
            found.append(f"box: expected fractions from 0 to 1, or whole numbers of pixels, found {list(self.box)}")
        if min(self.box) < 0:
            found.append(f"box: {list(self.box)} is not inside the picture; expected no negative numbers")
        return found

    def _polygon_problems(self) -> list[str]:
        if self.polygon is None:
            return []
        if len(self.polygon) < 3:
            return [f"polygon: expected at least 3 corners [x, y], found {len(self.polygon)}"]
        if not all(math.isfinite(number) for corner in self.polygon for number in corner):
            return ["polygon: expected numbers, found infinite ones or none"]
        return []
