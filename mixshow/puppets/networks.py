"""The networks of the built-in base: diffusers and transformers classes in the shape of SD 1.x."""

from __future__ import annotations

from diffusers import AutoencoderKL, DDIMScheduler, T2IAdapter, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENT_CHANNELS = 16
LATENT_FACTOR = 8
TEXT_WIDTH = 128
MAX_TOKENS = 48
UNET_WIDTHS = (64, 128, 160, 160)
_WORD_SPREAD = 0.1


def make_autoencoder() -> AutoencoderKL:
    """8x smaller latents of 16 channels."""
    blocks = 4
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
    )


def make_unet() -> UNet2DConditionModel:
    """SD 1.x's block layout with its 16 cross-attention layers, narrower."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=2,
        block_out_channels=UNET_WIDTHS,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # as in SD 1.x's config, this is the number of heads
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text encoder over the world's own vocabulary."""
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # Larger than the library's start: words must differ more than positions from the first step on.
    nn.init.normal_(model.get_input_embeddings().weight, std=_WORD_SPREAD)
    return model


def make_adapter() -> T2IAdapter:
    """The pose adapter: its features are added to the UNet's down blocks."""
    return T2IAdapter(
        in_channels=3,
        channels=list(UNET_WIDTHS),
        num_res_blocks=1,
        downscale_factor=LATENT_FACTOR,
        adapter_type="full_adapter",
    )


def make_scheduler() -> DDIMScheduler:
    """SD 1.x's noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
