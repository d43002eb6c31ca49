"""Shares and their differences with their uncertainty."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Self


@dataclasses.dataclass(frozen=True)
class Share:
    """So many hits out of so many trials.

    Attributes:
        hits: trials that went right.
        trials: all trials.
    """

    hits: int
    trials: int

    @property
    def value(self) -> float:
        """The share, 0..1; nan without trials."""
        return self.hits / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % score interval (Wilson 1927): right also near 0 and 1, where the usual one is not.

        Example:
            >>> [round(end, 3) for end in Share(95, 100).interval]
            [0.888, 0.978]
        """
        if not self.trials:
            return (0.0, 1.0)
        z, n, p = 1.959964, self.trials, self.value
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return (max(0.0, centre - half), min(1.0, centre + half))

    def to_json(self) -> dict[str, object]:
        """Plain values for a report."""
        return {
            "value": round(self.value, 4),
            "interval_95": [round(end, 4) for end in self.interval],
            "hits": self.hits,
            "trials": self.trials,
        }

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({100 * low:.1f}-{100 * high:.1f}, n = {self.trials})"


def share_of(outcomes: list[bool]) -> Share:
    """The share of true outcomes."""
    return Share(sum(outcomes), len(outcomes))


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """How a share changed over trials that were made twice.

    Attributes:
        gained: trials that went wrong before and right after.
        lost: the other way round.
        trials: all trials.
    """

    gained: int
    lost: int
    trials: int

    @classmethod
    def of(cls, before: Sequence[bool], after: Sequence[bool]) -> Self:
        """From the outcomes of the same trials, in the same order."""
        pairs = list(zip(before, after, strict=True))
        return cls(pairs.count((False, True)), pairs.count((True, False)), len(pairs))

    @property
    def value(self) -> float:
        """The share after less the share before; nan without trials."""
        return (self.gained - self.lost) / self.trials if self.trials else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of Agresti and Min (2005): Wald's with half a trial more in each cell of the two-by-two table.

        Example:
            >>> [round(end, 3) for end in PairedDifference(5, 8, 100).interval]
            [-0.101, 0.042]
        """
        z, n = 1.959964, self.trials + 2
        centre = (self.gained - self.lost) / n
        half = z * math.sqrt((self.gained + self.lost + 1) / n - centre * centre) / math.sqrt(n)
        return (max(-1.0, centre - half), min(1.0, centre + half))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:+.1f} ({100 * low:+.1f}..{100 * high:+.1f})"
