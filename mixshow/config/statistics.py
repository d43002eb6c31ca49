"""Options of `mixshow statistics`. Paths are relative to the folder the command is run in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from mixshow.config.load import Section, option
from mixshow.config.recording import StatisticsOptions

Kind = Literal[
    "own", "all", "text_attention", "text_feed_forward", "keys_values", "attention", "feed_forward", "convolutions",
    "time", "normalisations",
]  # fmt: skip
_OF_FUSION = ("collect", "points", "weights", "normalise", "shrinkage", "rows", "keep")


def _default_layers() -> list[Kind]:
    return ["own", "text_attention", "keys_values", "attention"]


@dataclasses.dataclass(frozen=True)
class StatisticsFileOptions(Section):
    base: str = option("'puppets' (built in), a diffusers folder, a hub id or a single file", "puppets")
    concept: Path | None = option("whose statistics; null: the base's own, on captions", None)
    embedding: Path | None = option("tokens for a network file: a file of textual inversion", None)
    trigger: str | None = option("words by which prompts name it, for a network without tokens", None)
    missing_alpha: Literal["error", "rank"] = option("for a network file that does not tell its scale", "error")
    tokens: str | None = option("its tokens in another order; null: as trained", None)
    alpha: float = option("strength of its network, as in the fusion", 1.0)
    text_encoder: float = option("strength of its network on the text encoder", 1.0)
    unet: float = option("strength of its network on the UNet", 1.0)
    captions: list[str] | None = option("ordinary captions; null: the built-in list", None)
    output: Path | None = option("a file; null: NAME.stats.safetensors beside the concept", None)
    layers: list[Kind] = option("own: those that the concept changes; kinds of layers; all", factory=_default_layers)
    biases: bool = option("for fusions where any concept changes biases: record every layer's constant input", False)
    statistics: StatisticsOptions = option("what layers' inputs are recorded on", factory=StatisticsOptions)
    vae: str | None = option("another place to take the autoencoder from", None)
    device: str = option("auto, cpu, cuda, cuda:1, ...", "auto")

    def problems(self) -> list[str]:
        plain = StatisticsOptions()
        found = [
            f"statistics.{name}: is an option of mixshow fuse; leave it out here"
            for name in _OF_FUSION
            if getattr(self.statistics, name) != getattr(plain, name)
        ]
        found += ["layers: expected at least one"] if not self.layers else []
        found += ["captions: expected at least one"] if self.captions == [] else []
        if self.concept is not None and self.captions is not None:
            found.append("captions: are for the base's own statistics; leave them out where there is a concept")
        if self.output is not None and self.output.suffix != ".safetensors":
            found.append(f"output: expected a name that ends in .safetensors, found {self.output}")
        return found
