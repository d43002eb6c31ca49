"""Which kinds of Stable Diffusion there are, told from a UNet's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREDICTIONS = ("epsilon", "v_prediction")
TEXT_TO_IMAGE = "expected a text-to-image model (Stable Diffusion 1.x, 2.x or XL)"


def is_xl(unet: Mapping[str, Any]) -> bool:
    """Whether a UNet of this configuration takes a pooled text state and sizes, as XL's do."""
    return unet.get("addition_embed_type") == "text_time"


def kind_problem(unet: Mapping[str, Any], index: Mapping[str, Any] | None = None) -> str | None:
    """Why a model of this kind is not supported; None when it is.

    Args:
        unet: the UNet's configuration.
        index: of the pipeline; which parts there are.
    """
    reads, writes = unet.get("in_channels"), unet.get("out_channels")
    if reads != writes:
        return f"{TEXT_TO_IMAGE}, found a UNet that reads {reads} channels and predicts {writes} (inpainting or such)"
    others = [key for key in ("encoder_hid_dim_type", "class_embed_type", "num_class_embeds") if unet.get(key)]
    if others:
        return f"{TEXT_TO_IMAGE}, found a UNet with {others[0]} {unet[others[0]]}"
    added = unet.get("addition_embed_type")
    if added is not None and not is_xl(unet):
        return f"{TEXT_TO_IMAGE}, found a UNet with addition_embed_type {added}"
    if is_xl(unet) and index is not None and (index.get("text_encoder") or (None, None))[1] is None:
        return f"{TEXT_TO_IMAGE}, found one of XL's kind with one text encoder (a refiner); take the base model"
    return None
