"""Single-file checkpoints of tiny random models, under the names of the original code, built in code.

Head widths, groups and the vocabulary are those of the published models, which such files do not state.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mixshow.models.base import Base
from mixshow.models.checkpoint_names import clip_tensors, open_clip_tensors, unet_tensors, vae_tensors
from mixshow.models.checkpoint_shapes import SCHEDULE
from mixshow.models.clip_tokenizer import clip_tokenizer

_WIDTH, _POOLED, _TIME, _LENGTH = 64, 24, 8, 20
_UNETS = {
    "sd1": {"block_out_channels": (32, 32, 64, 64), "attention_head_dim": 8, "cross_attention_dim": _WIDTH},
    "sd2": {
        "block_out_channels": (64, 64, 128, 128), "attention_head_dim": (1, 1, 2, 2), "use_linear_projection": True,
        "cross_attention_dim": _WIDTH,
    },
    "xl": {
        "block_out_channels": (64, 64, 128), "attention_head_dim": (1, 1, 2), "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 3), "addition_embed_type": "text_time",
        "addition_time_embed_dim": _TIME, "projection_class_embeddings_input_dim": _POOLED + 6 * _TIME,
        "cross_attention_dim": 3 * _WIDTH,
    },
}  # fmt: skip


def published_shape(kind: str) -> Base:
    """A random base of `sd1`, `sd2` or `xl` that a checkpoint can hold."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(sample_size={"sd1": 64, "sd2": 96, "xl": 128}[kind], **_UNETS[kind])
        vae = AutoencoderKL(
            block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, layers_per_block=2,
            scaling_factor=0.13025 if kind == "xl" else 0.18215,
        )  # fmt: skip
        first = CLIPTextModel(_text(_WIDTH, "gelu" if kind == "sd2" else "quick_gelu"))
        second = CLIPTextModelWithProjection(_text(2 * _WIDTH, "gelu")) if kind == "xl" else None
        for model in (unet, vae, first, second):
            if model is not None:
                model.eval().requires_grad_(False)
    scheduler = {**SCHEDULE, "prediction_type": "v_prediction" if kind == "sd2" else "epsilon"}
    return Base(
        clip_tokenizer(length=_LENGTH, pad_with_zero=kind == "sd2"), first, vae, unet, scheduler,
        tokenizer_2=clip_tokenizer(length=_LENGTH, pad_with_zero=True) if second else None,
        text_encoder_2=second, zero_empty_prompt=kind == "xl",
    )  # fmt: skip


def _text(width: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=width // 64,
        max_position_embeddings=_LENGTH, projection_dim=_POOLED, hidden_act=activation, eos_token_id=49407,
    )  # fmt: skip


def original_tensors(base: Base, kind: str) -> dict[str, Tensor]:
    """A base's tensors under the original names, with what published files hold besides."""
    encoders = {name: encoder.state_dict() for name, encoder in base.text_encoders.items()}
    tensors = _below("model.diffusion_model.", unet_tensors(base.unet, base.unet.state_dict()))
    tensors |= _below("first_stage_model.", vae_tensors(base.vae, base.vae.state_dict()))
    if kind == "sd2":
        open_clip = open_clip_tensors(encoders["text_encoder"], layers=2, last_left_out=True)
        last = {  # which is not read
            name: torch.full_like(tensor, 7.0) for name, tensor in open_clip.items() if "resblocks.2." in name
        }
        more = {"text_projection": torch.zeros(_WIDTH, _WIDTH), "logit_scale": torch.tensor(1.0)}
        return tensors | _below("cond_stage_model.model.", open_clip | last | more)
    first = clip_tensors(encoders["text_encoder"])
    if kind == "sd1":
        first["text_model.embeddings.position_ids"] = torch.arange(_LENGTH)[None]
        return tensors | _below("cond_stage_model.transformer.", first)
    second = open_clip_tensors(encoders["text_encoder_2"], layers=2)
    first, second = (
        _below("conditioner.embedders.0.transformer.", first),
        _below("conditioner.embedders.1.model.", second),
    )
    return tensors | first | second


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}
