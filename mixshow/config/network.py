"""Options of one network file."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from mixshow.config.load import Section, option


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Section):
    file: Path = option("a network file of any algorithm, of kohya's programs, LyCORIS or this one")
    strength: float = option("factor on its change; 0: none", 1.0)
    missing_alpha: Literal["error", "rank"] = option(
        "a file that does not tell its scale: refuse it, or take alpha = rank as most programs do", "error"
    )

    def problems(self) -> list[str]:
        return (
            [] if math.isfinite(self.strength) else [f"strength: expected a number such as 0.8, found {self.strength}"]
        )
