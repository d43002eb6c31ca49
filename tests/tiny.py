"""Tiny random bases of the shapes of Stable Diffusion 1.x, 2.x and XL, and random concepts for them, built in code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mixshow.edlora.concept import TEXT_WIDTHS, Concept
from mixshow.lycoris import create_network
from mixshow.lycoris.naming import file_name
from mixshow.models.base import Base

WORDS = [
    *("a", "photo", "of", "the", "in", "on", "at", "picture", "boy", "girl", "man", "dog", "toy", "puppet"),
    *("red", "blue", "hat", "beach", "rain", ",", "<", ">"),
]


KINDS = ("sd1", "sd2", "xl")
_POOLED, _TIME = 20, 8  # widths of XL's added conditions
_UNETS = {
    "sd1": {"block_out_channels": (16, 16, 24, 24), "attention_head_dim": 2},
    "sd2": {
        "block_out_channels": (16, 16, 24, 24), "attention_head_dim": (2, 2, 3, 3), "use_linear_projection": True,
    },
    "xl": {
        "block_out_channels": (16, 16, 24), "attention_head_dim": (2, 2, 3), "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2), "addition_embed_type": "text_time",
        "addition_time_embed_dim": _TIME, "projection_class_embeddings_input_dim": _POOLED + 6 * _TIME,
    },
}  # fmt: skip


def tiny_tokenizer(folder: Path, **options: str) -> CLIPTokenizer:
    """Every word of WORDS is one token, any other text is spelled in characters."""
    letters = [chr(c) for c in range(33, 127)]
    entries = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[0]} {parts[1]}")
            parts = [parts[0] + parts[1], *parts[2:]]
            entries.append(parts[0])
    entries = list(dict.fromkeys(entries)) + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)) + "\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24, **options)


def tiny_base(folder: Path, *, kind: str = "sd1", width: int = 16, seed: int = 0) -> Base:
    """A base with 4 latent channels and 8x latents, of 16 cross-attention layers (XL: 17); 0.4 M parameters.

    Args:
        folder: for the tokenizer's files.
        kind: `sd1`; `sd2`, which predicts velocities; `xl`, whose second text encoder is half as wide again.
        width: of the first text encoder's states.
    """
    xl = kind == "xl"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = tiny_tokenizer(folder)
        text_encoder = CLIPTextModel(_text_config(tokenizer, width, width))
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=2, norm_num_groups=8,
            cross_attention_dim=width + 3 * width // 2 if xl else width, **_UNETS[kind],
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=4, norm_num_groups=4, sample_size=64,
        )  # fmt: skip
        text_encoder_2 = tokenizer_2 = None
        if xl:
            tokenizer_2 = tiny_tokenizer(folder, pad_token="!")
            text_encoder_2 = CLIPTextModelWithProjection(_text_config(tokenizer_2, 3 * width // 2, _POOLED))
        for model in (text_encoder, unet, vae, *([text_encoder_2] if text_encoder_2 else [])):
            model.eval().requires_grad_(False)
            for (
                module
            ) in model.modules():  # the last layers of some blocks start at zero; random ones can be told apart
                if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                    module.weight.data.normal_(0, module.weight[0].numel() ** -0.5)
    scheduler = {
        "_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
        "prediction_type": "v_prediction" if kind == "sd2" else "epsilon",
    }  # fmt: skip
    return Base(
        tokenizer, text_encoder, vae, unet, scheduler, source="tiny",
        tokenizer_2=tokenizer_2, text_encoder_2=text_encoder_2, zero_empty_prompt=xl,
    )  # fmt: skip


def _text_config(tokenizer: CLIPTokenizer, width: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24, projection_dim=projection,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def tiny_adapter(base: Base) -> T2IAdapter:
    """A random T2I-Adapter that fits the base's UNet."""
    channels = list(base.unet.config.block_out_channels)
    if base.text_encoder_2 is not None:
        return T2IAdapter(
            in_channels=3, channels=[*channels, channels[-1]], num_res_blocks=1,
            downscale_factor=2 * base.topology.latent_factor, adapter_type="full_adapter_xl",
        ).eval()  # fmt: skip
    return T2IAdapter(
        in_channels=3, channels=channels, num_res_blocks=1,
        downscale_factor=base.topology.latent_factor, adapter_type="full_adapter",
    ).eval()  # fmt: skip


def tiny_concept(base: Base, name: str, *, rank: int = 2, strength: float = 0.1, seed: int = 0) -> Concept:
    """A random concept `<name1> <name2>` on all attention projections of text encoders and UNet."""
    generator = torch.Generator().manual_seed(seed)
    text, unet = ("q_proj", "k_proj", "v_proj", "out_proj"), ("to_q", "to_k", "to_v", "to_out.0")
    targets = [
        file_name(name, path, base.models)
        for name, model in base.models.items()
        for path, _ in model.named_modules()
        if path.endswith(unet if name == "unet" else text)
    ]
    network = create_network(base.models, targets=targets, dim=rank, generator=generator)
    for adapter in network.adapters.values():
        adapter.up.data = torch.randn(adapter.up.shape, generator=generator) * strength
    layers, width = base.topology.layers, base.topology.text_width
    embeddings = {f"<{name}{i}>": torch.randn(layers, width, generator=generator) * 0.5 for i in (1, 2)}
    metadata: dict[str, Any] = {"topology": base.topology.fingerprint()}
    if len(base.text_widths) > 1:
        metadata[TEXT_WIDTHS] = list(base.text_widths)
    return Concept(embeddings, network.file_tensors(), metadata, name)
