"""Pictures that guide the layout (poses, sketches, ...), through T2I-Adapters (arXiv 2302.08453)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import T2IAdapter
from PIL import Image
from torch import Tensor

from mixshow.core.errors import MixshowError, explained
from mixshow.models import Base
from mixshow.models.base import BUILT_IN, built_in_folder, source_problem
from mixshow.sampling.guide import UNetInput, Weight, weighed


@dataclasses.dataclass(frozen=True)
class Condition:
    """Features that an adapter made of condition pictures.

    Attributes:
        features: one tensor per down block, `[pictures, channels, height, width]`; one picture serves a whole batch.
        weight: factor on the features, or one for each position; 0 is the same as no condition.
        span: part of the steps in which they are added, from 0.0 (first) to 1.0 (last).
    """

    features: tuple[Tensor, ...]
    weight: Weight = 1.0
    span: tuple[float, float] = (0.0, 1.0)

    def for_unet(self, given: UNetInput) -> dict[str, Any]:
        """See `Guide`; the same is added in both halves. A batch holds every picture equally often."""
        if self.weight == 0 or not given.within(self.span):
            return {}
        batch = len(given.latents)
        added = [weighed(feature, self.weight).repeat(batch // len(feature), 1, 1, 1) for feature in self.features]
        return {"down_intrablock_additional_residuals": added}

    def part(self, start: int, end: int) -> Condition:
        """The condition of pictures `start` to `end` (not included) of a larger batch."""
        if len(self.features[0]) == 1:
            return self
        return dataclasses.replace(self, features=tuple(feature[start:end] for feature in self.features))


def load_adapter(source: str | Path, base: Base) -> T2IAdapter:
    """Load an adapter to the base's device and type.

    Args:
        source: `"puppets"` (the built-in base's pose adapter), a folder, or a hub id.

    Raises:
        MixshowError: there is no such adapter, or it is of other widths than the base.
    """
    check_adapter(source, base.unet.config, base.source)
    with explained(_expectation(source)):
        adapter = T2IAdapter.from_pretrained(_place(source), torch_dtype=base.unet.dtype)
    return adapter.to(base.device).eval().requires_grad_(False)


def check_adapter(source: str | Path, unet: Mapping[str, Any], model: str) -> None:
    """Look at an adapter's configuration, which of a hub id is fetched.

    Args:
        unet: configuration of the UNet it is for.
        model: the base's name, for messages.

    Raises:
        MixshowError: there is no such adapter, or it is of other widths than the base.
    """
    problem = adapter_problem(source)
    if problem:
        raise MixshowError(f"adapter: {problem}")
    with explained(_expectation(source)):
        config = T2IAdapter.load_config(_place(source))
        found = tuple(config["channels"])
    expected = tuple(unet["block_out_channels"])
    if config.get("adapter_type") == "full_adapter_xl":
        expected = (*expected, expected[-1])  # these have features for the middle block too
    if found != expected:
        raise MixshowError(
            f"adapter '{source}': expected one for widths {expected} of base '{model}', found {found}; it was trained "
            "on another kind of base"
        )


def adapter_problem(source: str | Path) -> str | None:
    """Why `source` can name no adapter; None when it can. Loads nothing."""
    if str(source) == BUILT_IN and not built_in_folder("adapter").is_dir():
        return f"the weights of '{BUILT_IN}' are not installed; make them with scripts/train_puppets.py"
    return source_problem(source)


def _expectation(source: str | Path) -> str:
    return f"adapter '{source}': expected '{BUILT_IN}', a folder or a hub id of a T2I-Adapter"


def _place(source: str | Path) -> str:
    return str(built_in_folder("adapter") if str(source) == BUILT_IN else Path(source).expanduser())


@torch.no_grad()
def adapter_condition(
    adapter: T2IAdapter,
    pictures: Sequence[Image.Image],
    *,
    weight: Weight = 1.0,
    span: tuple[float, float] = (0.0, 1.0),
) -> Condition:
    """Let an adapter read condition pictures.

    Args:
        pictures: of the size that is to be made; one for a whole batch, or one per picture of it.
        weight: factor on the features, or one for each position.
        span: part of the steps in which they count, from 0.0 to 1.0.
    """
    batch = picture_tensor(pictures, adapter.config.in_channels)
    features = adapter(batch.to(adapter.device, adapter.dtype))
    return Condition(tuple(features), weight, span)


def picture_tensor(pictures: Sequence[Image.Image], channels: int) -> Tensor:
    """Condition pictures as networks read them, `[pictures, channels, height, width]` in 0..1.

    Args:
        channels: 3, or 1 for grey ones.
    """
    mode = "RGB" if channels == 3 else "L"
    batch = torch.from_numpy(np.stack([np.asarray(p.convert(mode), dtype=np.float32) / 255 for p in pictures]))
    return (batch[:, None] if batch.dim() == 3 else batch.permute(0, 3, 1, 2)).contiguous()
