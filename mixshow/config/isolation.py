"""Options that keep the regions of a scene apart."""

from __future__ import annotations

import dataclasses

from mixshow.config.load import Section, option


@dataclasses.dataclass(frozen=True)
class IsolateOptions(Section):
    """Positions of one region do not attend to those of another in self-attention."""

    start: float = option("from which part of the steps on, 0.0 to 1.0", 0.0)
    end: float = option("up to which part of the steps", 0.4)
    strength: float = option("1: not at all from one region to another; 0: as without", 1.0)

    def problems(self) -> list[str]:
        found = []
        if not 0 <= self.start < self.end <= 1:
            found.append(f"start, end: expected 0 <= start < end <= 1, found {self.start} and {self.end}")
        if not 0 <= self.strength <= 1:
            found.append(f"strength: expected 0 to 1, found {self.strength}")
        return found
