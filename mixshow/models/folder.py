"""Bases as diffusers keeps them: a folder (or a hub repository) with one subfolder per part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_json
from mixshow.models.kinds import is_xl, kind_problem

MODEL_INDEX = "model_index.json"

if TYPE_CHECKING:
    from mixshow.models.base import Base


def folder_parts(place: str, dtype: torch.dtype) -> dict[str, Any]:
    """Everything but the autoencoder, from a diffusers folder or a hub id.

    Raises:
        MixshowError: the model is of a kind that is not supported.
    """
    shape = UNet2DConditionModel.load_config(place, subfolder="unet")
    index = pipeline_index(place)
    problem = kind_problem(shape, index)
    if problem:
        raise MixshowError(f"base '{place}': {problem}")
    parts: dict[str, Any] = {
        "tokenizer": CLIPTokenizer.from_pretrained(place, subfolder="tokenizer"),
        "text_encoder": CLIPTextModel.from_pretrained(place, subfolder="text_encoder", torch_dtype=dtype),
        "unet": UNet2DConditionModel.from_pretrained(place, subfolder="unet", torch_dtype=dtype),
        "scheduler_config": dict(diffusers.DDPMScheduler.load_config(place, subfolder="scheduler")),
    }
    if not is_xl(shape):
        return parts
    tokenizer = CLIPTokenizer.from_pretrained(place, subfolder="tokenizer_2")
    config = CLIPTextConfig.from_pretrained(place, subfolder="text_encoder_2")
    # Published configurations give a wrong end token, with which a summary is taken at the largest id: with concept
    # tokens, ids beyond the end token's, at one of them.
    config.eos_token_id = tokenizer.eos_token_id
    return parts | {
        "tokenizer_2": tokenizer,
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(
            place, subfolder="text_encoder_2", config=config, torch_dtype=dtype
        ),
        "zero_empty_prompt": bool((index or {}).get("force_zeros_for_empty_prompt", True)),
    }


def model_index(base: Base) -> dict[str, Any]:
    """The contents of `model_index.json`: what diffusers makes of the folder."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", base.scheduler_config.get("_class_name", "PNDMScheduler")],
        "text_encoder": ["transformers", type(base.text_encoder).__name__],
        "tokenizer": ["transformers", type(base.tokenizer).__name__],
        "unet": ["diffusers", type(base.unet).__name__],
        "vae": ["diffusers", type(base.vae).__name__],
    }
    if base.text_encoder_2 is None:
        return index
    del index["requires_safety_checker"], index["safety_checker"]
    return index | {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": base.zero_empty_prompt,
        "text_encoder_2": ["transformers", type(base.text_encoder_2).__name__],
        "tokenizer_2": ["transformers", type(base.tokenizer_2).__name__],
    }


def pipeline_index(place: str) -> dict[str, Any] | None:
    """`model_index.json` of a diffusers folder or a hub id; None: the folder has none."""
    if not Path(place).is_dir():
        return dict(diffusers.DiffusionPipeline.load_config(place))
    path = Path(place) / MODEL_INDEX
    return dict(read_json(path)) if path.is_file() else None
