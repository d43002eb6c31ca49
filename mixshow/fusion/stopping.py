"""When refining stops: once the mean held-out error no longer falls, and the best that was seen is kept.

The prompts looked at are neither learned from nor those of the report, whose figures so stay held out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from mixshow.core.progress import log
from mixshow.fusion.heldout import HeldOut
from mixshow.models import Base

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Look:
    """A look at the validation prompts.

    Attributes:
        at: step or pass; 0: before refining.
        error: mean E over the concepts.
        drift: of the base on ordinary captions.
    """

    at: int
    error: float
    drift: float


class EarlyStopping(Generic[T]):
    """Keeps the best of what it is shown.

    Args:
        references: the validation prompts' predictions.
        patience: looks in a row without a lower error after which to stop.
        tolerance: an error is lower when it is so by this share.
    """

    def __init__(self, references: HeldOut, *, patience: int = 2, tolerance: float = 0.01) -> None:
        self._references, self._patience, self._tolerance = references, patience, tolerance
        self._waited = 0
        self.looks: list[Look] = []
        self.best: tuple[Look, T] | None = None

    def look(self, fused: Base, at: int, keep: Callable[[], T]) -> bool:
        """Score a fused model that is in place; whether to stop.

        Args:
            keep: what to remember when it is the best so far.
        """
        scores = self._references.score(fused)
        look = Look(at, sum(scores.errors.values()) / len(scores.errors), scores.drift)
        self.looks.append(look)
        log.info("validation at %d: mean held-out error %.4f, drift %.4f", at, look.error, look.drift)
        before = float("inf") if self.best is None else self.best[0].error
        if self.best is None or look.error < before:
            self.best = look, keep()
        lower = look.error < (1 - self._tolerance) * before
        self._waited = 0 if lower else self._waited + 1
        return self._waited >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """Plain values, and what was kept, to go on from."""
        looks = [dataclasses.asdict(look) for look in self.looks]
        best = None if self.best is None else (self.best[0].at, self.best[1])
        return {"waited": self._waited, "looks": looks, "best": best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._waited = state["waited"]
        self.looks = [Look(**look) for look in state["looks"]]
        if state["best"] is not None:
            at, kept = state["best"]
            self.best = next(look for look in self.looks if look.at == at), kept

    def to_json(self) -> dict[str, Any]:
        """Plain values for the report."""
        kept = None if self.best is None else self.best[0].at
        return {"looks": [dataclasses.asdict(look) for look in self.looks], "kept": kept}
