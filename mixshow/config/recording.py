"""Options of what layers' inputs are recorded on, for `mixshow fuse` and `mixshow statistics`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from mixshow.config.load import Section, option
from mixshow.config.refine import template_problems


@dataclasses.dataclass(frozen=True)
class StatisticsOptions(Section):
    collect: Literal["sequential", "independent", "progressive"] | None = option(
        "sequential: the UNet's layers besides keys and values one after another, each on what it reads in the fused "
        "model for what is lacking there, the others as independent; independent: each concept under its own model; "
        "progressive: each stage through the stages fused before it; null: sequential, and independent where "
        "concepts[].statistics are given or other options need it",
        None,
    )
    text_prompts: list[str] | None = option(
        "prompts with {concept} for text encoder, keys and values; null: the built-in list", None
    )
    picture_prompts: list[str] | None = option(
        "prompts with {concept} for the other layers; null: the built-in list", None
    )
    text_rows: Literal["all", "concept"] = option(
        "all: every position of padded prompts; concept: unpadded, for keys and values concept and end tokens",
        "all",
    )
    row_weights: Literal["equal", "sensitivity"] = option(
        "sensitivity: inputs of the UNet's layers besides keys and values count by how much the predicted noise "
        "depends on what the layer makes of them; takes a pass forwards and backwards more at each step",
        "equal",
    )
    weights: Literal["given", "rows"] = option(
        "weigh concepts by concepts[].weight, or by their number of recorded rows", "given"
    )
    normalise: Literal["none", "inputs", "changes"] = option(
        "divide a concept's weight by its mean squared inputs, or by what its changes add to the outputs", "none"
    )
    shrinkage: float = option(
        "share of the moments' off-diagonal elements that is taken away, 0 to 1; helps where prompts are few", 0.0
    )
    rows: int = option("inputs kept of each layer and concept where solver.objective is huber or cosine", 512)
    steps: int = option("denoising steps that are recorded", 8)
    points: int | None = option(
        "points of pictures that layers are solved on in sequence, shared by the concepts, and a quarter as many of "
        "ordinary captions; what they hold in two models is in memory at once. null: 96, of pictures with more than "
        "1,024 latent positions, which have more to say each, 32, and fewer where these take more than half of the "
        "memory that the model leaves",
        None,
    )
    width: int | None = option("of the recorded pictures in pixels; null: the base's native side", None)
    height: int | None = option("of the recorded pictures in pixels; null: the base's native side", None)
    seed: int = option("of the start noise", 0)
    batch_size: int = option("pictures denoised together", 8)
    moment_width: int = option("of wider inputs (3x3 convolutions) rows are kept instead of the moment", 5120)
    kept_rows: int = option("rows that are kept of such inputs, a sample where there are more", 2048)
    keep: bool = option("keep all statistics beside the fused model, so that concepts can be added and removed", False)

    def problems(self) -> list[str]:
        found = [
            f"{name}: expected at least 1, found {getattr(self, name)}"
            for name in ("steps", "points", "batch_size", "moment_width", "kept_rows", "rows")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        if not 0 <= self.shrinkage <= 1:
            found.append(f"shrinkage: expected 0 to 1, found {self.shrinkage}")
        for name in ("text_prompts", "picture_prompts"):
            found += template_problems(name, getattr(self, name))
        return found


@dataclasses.dataclass(frozen=True)
class AnchorOptions(Section):
    weight: float = option(
        "how much the base's behaviour on ordinary captions counts beside all concepts together; 0: not at all", 0.3
    )
    captions: list[str] | None = option("ordinary captions; null: the built-in list", None)
    statistics: Path | None = option("a file of mixshow statistics --captions to use; null: record them", None)

    def problems(self) -> list[str]:
        return [
            *([] if self.weight >= 0 else [f"weight: expected 0 or more, found {self.weight}"]),
            *(["captions: expected at least one"] if self.captions == [] else []),
        ]
