"""Text encoders and UNets in the shapes of SD 1.5, 2.1 and XL, without weights (on the meta device)."""

from __future__ import annotations

from functools import cache

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection


@cache
def base_shape(name: str) -> dict[str, nn.Module]:
    """The models of `sd1`, `sd2` or `xl`."""
    with torch.device("meta"):
        if name == "sd1":
            unet = UNet2DConditionModel(
                block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
            )
            return {"text_encoder": _text(768, 12), "unet": unet}
        if name == "sd2":
            unet = UNet2DConditionModel(
                block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=1024, use_linear_projection=True,
                attention_head_dim=(5, 10, 20, 20),
            )  # fmt: skip
            return {"text_encoder": _text(1024, 23), "unet": unet}
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280), cross_attention_dim=2048, use_linear_projection=True,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
            addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
        return {"text_encoder": _text(768, 12), "text_encoder_2": _text(1280, 32, projection=True), "unet": unet}


def _text(width: int, layers: int, *, projection: bool = False) -> nn.Module:
    config = CLIPTextConfig(
        vocab_size=100, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, projection_dim=width, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
