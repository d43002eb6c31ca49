"""Pictures that guide the layout (poses, sketches, ...), through T2I-Adapters (arXiv 2302.08453)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import T2IAdapter
from PIL import Image
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.models import Base
from mixshow.models.base import BUILT_IN, built_in_folder, source_problem


@dataclasses.dataclass(frozen=True)
class Condition:
    """Features that an adapter made of condition pictures.

    Attributes:
        features: one tensor per down block, `[pictures, channels, height, width]`; one picture serves a whole batch.
        weight: factor on the features; 0 is the same as no condition.
        span: part of the steps in which they are added, from 0.0 (first) to 1.0 (last).
    """

    features: tuple[Tensor, ...]
    weight: float = 1.0
    span: tuple[float, float] = (0.0, 1.0)

    def features_at(self, step: int, steps: int, batch: int) -> list[Tensor] | None:
        """What is added at step `step` of `steps`, for a batch that holds every picture equally often, or None."""
        first, last = self.span
        if self.weight == 0 or not first * steps <= step < last * steps:
            return None
        return [self.weight * feature.repeat(batch // len(feature), 1, 1, 1) for feature in self.features]

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
    problem = adapter_problem(source)
    if problem:
        raise MixshowError(f"adapter: {problem}")
    place = built_in_folder("adapter") if str(source) == BUILT_IN else Path(source).expanduser()
    try:
        adapter = T2IAdapter.from_pretrained(str(place), torch_dtype=base.unet.dtype)
    except Exception as error:  # the hub, safetensors, json and the class each raise their own kinds
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MixshowError(
            f"adapter '{source}': expected '{BUILT_IN}', a folder or a hub id of a T2I-Adapter ({first_line})"
        ) from error
    expected = tuple(base.unet.config.block_out_channels)
    if adapter.config.adapter_type == "full_adapter_xl":
        expected = (*expected, expected[-1])  # these have features for the middle block too
    if tuple(adapter.config.channels) != expected:
        raise MixshowError(
            f"adapter '{source}': expected one for widths {expected} of base '{base.source}', found "
            f"{tuple(adapter.config.channels)}; it was trained on another kind of base"
        )
    return adapter.to(base.device).eval().requires_grad_(False)


def adapter_problem(source: str | Path) -> str | None:
    """Why `source` can name no adapter; None when it can. Loads nothing."""
    if str(source) == BUILT_IN and not built_in_folder("adapter").is_dir():
        return f"the weights of '{BUILT_IN}' are not installed; make them with scripts/train_puppets.py"
    return source_problem(source)


@torch.no_grad()
def adapter_condition(
    adapter: T2IAdapter,
    pictures: Sequence[Image.Image],
    *,
    weight: float = 1.0,
    span: tuple[float, float] = (0.0, 1.0),
) -> Condition:
    """Let an adapter read condition pictures.

    Args:
        pictures: of the size that is to be made; one for a whole batch, or one per picture of it.
        weight: factor on the features.
        span: part of the steps in which they count, from 0.0 to 1.0.
    """
    channels = adapter.config.in_channels
    arrays = [
        np.asarray(picture.convert("RGB" if channels == 3 else "L"), dtype=np.float32) / 255 for picture in pictures
    ]
    batch = torch.from_numpy(np.stack(arrays))
    batch = batch[:, None] if batch.dim() == 3 else batch.permute(0, 3, 1, 2)
    features = adapter(batch.to(adapter.device, adapter.dtype).contiguous())
    return Condition(tuple(features), weight, span)
