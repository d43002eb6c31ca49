"""What a fusion minimises in every layer, as plain numbers; `problem.py` has the mathematics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mixshow.fusion.build import Normalisation


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised in every layer.

    Attributes:
        ridge: lambda as a share of the mean eigenvalue of the inputs' moment.
        anchor_weight: mu, how much changed outputs on ordinary captions count; the concepts' weights sum to 1.
        captions: the ordinary captions.
        weights_by_rows: weigh concepts by their number of rows (published) instead of by their given weights.
        shrinkage: share of the moments' off-diagonal elements that is taken away.
        normalise: by what concepts' weights are divided, so that a loud one does not win.
        constraint_prompts: with `{concept}`; keys and values of concept tokens in them are kept exactly. Empty: no
            constraints.
    """

    ridge: float = 0.0
    anchor_weight: float = 0.0
    captions: Sequence[str] = ()
    weights_by_rows: bool = False
    shrinkage: float = 0.0
    normalise: Normalisation = "none"
    constraint_prompts: Sequence[str] = ()
