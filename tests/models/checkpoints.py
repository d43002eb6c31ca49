"""Single-file checkpoints of tiny random models, under the names of the original code, built in code.

Head widths, groups and the vocabulary are those of the published models, which such files do not state.
"""

from __future__ import annotations

import re

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mixshow.lycoris.sgm import sgm_names
from mixshow.models.base import Base
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
    """A base's tensors under the original names."""
    tensors = _below("model.diffusion_model.", original_unet(base.unet)) | _below("first_stage_model.", _vae(base.vae))
    first = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in base.text_encoder.state_dict().items()}
    if kind == "sd2":
        open_clip = _open_clip(base.text_encoder)
        last = {  # the original model's last layer, which is not read
            name.replace("resblocks.1.", "resblocks.2."): torch.full_like(tensor, 7.0)
            for name, tensor in open_clip.items()
            if "resblocks.1." in name
        }
        more = {"text_projection": torch.zeros(_WIDTH, _WIDTH), "logit_scale": torch.tensor(1.0)}
        return tensors | _below("cond_stage_model.model.", open_clip | last | more)
    if kind == "sd1":
        first["text_model.embeddings.position_ids"] = torch.arange(_LENGTH)[None]
        return tensors | _below("cond_stage_model.transformer.", first)
    assert base.text_encoder_2 is not None
    second = _open_clip(base.text_encoder_2)
    second["text_projection"] = base.text_encoder_2.text_projection.weight.T
    first, second = (
        _below("conditioner.embedders.0.transformer.", first),
        _below("conditioner.embedders.1.model.", second),
    )
    return tensors | first | second


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


def original_unet(unet: nn.Module) -> dict[str, Tensor]:
    names = sgm_names(unet)
    found = {}
    for key, tensor in unet.state_dict().items():
        path, _, parameter = key.rpartition(".")
        spelled = names[path][0]
        if "upsamplers" in path and not hasattr(unet.get_submodule(".".join(path.split(".")[:2])), "attentions"):
            spelled = names[path][1]
        found[f"{spelled}.{parameter}"] = tensor
    return found


def _open_clip(encoder: nn.Module) -> dict[str, Tensor]:
    own = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    found = {
        "token_embedding.weight": own["embeddings.token_embedding.weight"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "ln_final.weight": own["final_layer_norm.weight"],
        "ln_final.bias": own["final_layer_norm.bias"],
    }
    for layer in range(encoder.config.num_hidden_layers):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for part in ("weight", "bias"):
            joined = [own[f"{ours}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            found[f"{theirs}.attn.in_proj_{part}"] = torch.cat(joined)
            for name, other in {
                "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
            }.items():  # fmt: skip
                found[f"{theirs}.{other}.{part}"] = own[f"{ours}.{name}.{part}"]
    return found


def _vae(vae: nn.Module) -> dict[str, Tensor]:
    ups = len(vae.config.block_out_channels)
    rules = [
        (r"down_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"down.{m[1]}.block.{m[2]}"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", lambda m: f"down.{m[1]}.downsample"),
        (r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{ups - 1 - int(m[1])}.block.{m[2]}"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{ups - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", lambda m: "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", lambda m: "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", lambda m: f"mid.attn_1.{m[1]}"),
        (r"conv_shortcut", lambda m: "nin_shortcut"),
        (r"conv_norm_out", lambda m: "norm_out"),
    ]
    found = {}
    for key, tensor in vae.state_dict().items():
        name = key
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if ".attn_1." in name and tensor.dim() == 2:
            tensor = tensor[:, :, None, None]
        found[name] = tensor
    return found
