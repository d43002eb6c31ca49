"""Whole runs beside diffusers' own pipelines on the tiny base, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from mixshow.models import Base, PromptReading, make_scheduler, read_prompts
from mixshow.sampling.generate import latents_of_states, pixels_of, start_noise
from mixshow.sampling.original import Original
from mixshow.sampling.precision import Precision
from tests.tiny import tiny_base

SCHEDULERS = ("DDIM", "EulerDiscrete", "DPMSolverMultistep", "HeunDiscrete")
PARTS = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def theirs(kind: Any, base: Base, scheduler: str, **keywords: Any) -> list[Tensor]:
    """Latents after every step of a pipeline of diffusers."""
    found: list[Tensor] = []

    def note(_: Any, __: int, ___: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        found.append(values["latents"].clone())
        return {}

    sampler = make_scheduler(base, scheduler)
    pipeline = kind(base.vae, base.text_encoder, base.tokenizer, base.unet, sampler, **PARTS)
    pipeline.set_progress_bar_config(disable=True)
    pipeline(guidance_scale=5.0, output_type="latent", callback_on_step_end=note, **keywords)
    return found


def ours(base: Base, scheduler: str, noise: Tensor, steps: int, clip_skip: int = 0, **keywords: Any) -> list[Tensor]:
    found: list[Tensor] = []
    reading = PromptReading(clip_skip=clip_skip)
    latents_of_states(
        base,
        read_prompts(base, ["a red dog"], reading),
        read_prompts(base, ["rain"], reading),
        seeds=[0],
        noise=noise,
        steps=steps,
        guidance=5.0,
        scheduler=scheduler,
        callback=lambda step: found.append(step["latents"].clone()),
        precision=Precision.FP32,
        **keywords,
    )
    return found


def check(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 1
    for own, other in zip(found, expected):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


@pytest.mark.parametrize("scheduler", SCHEDULERS[:2])
def test_rescaled_guidance(tiny: Base, scheduler: str) -> None:
    noise = start_noise(tiny, [0], 8, 8)
    expected = theirs(
        StableDiffusionPipeline, tiny, scheduler, prompt="a red dog", negative_prompt="rain", latents=noise,
        num_inference_steps=3, guidance_rescale=0.7, height=64, width=64,
    )  # fmt: skip
    check(ours(tiny, scheduler, noise, 3, rescale=0.7), expected)
    plain = ours(tiny, scheduler, noise, 3)
    assert not torch.allclose(plain[-1], expected[-1], rtol=1e-2)


def test_clip_skip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_base(tmp_path)  # asked for hidden states, text encoders keep hooks
    if not hasattr(tiny.text_encoder, "text_model"):  # diffusers looks for it where older libraries have it
        monkeypatch.setattr(type(tiny.text_encoder), "text_model", property(lambda self: self), raising=False)
    noise = start_noise(tiny, [0], 8, 8)
    negative = read_prompts(tiny, ["rain"], PromptReading(clip_skip=1)).states[:, 0]  # diffusers skips none there
    expected = theirs(
        StableDiffusionPipeline, tiny, "DDIM", prompt="a red dog", negative_prompt_embeds=negative, latents=noise,
        num_inference_steps=3, clip_skip=1, height=64, width=64,
    )  # fmt: skip
    check(ours(tiny, "DDIM", noise, 3, clip_skip=1), expected)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_image_to_image(tiny: Base, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    latents = tiny.encode_images(pixels_of([picture]))
    noise = start_noise(tiny, [0], 8, 8)
    monkeypatch.setattr(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img.randn_tensor",
        lambda *_, **__: noise,
    )
    expected = theirs(
        StableDiffusionImg2ImgPipeline, tiny, scheduler, prompt="a red dog", negative_prompt="rain", image=latents,
        num_inference_steps=6, strength=0.6,
    )  # fmt: skip
    check(ours(tiny, scheduler, noise, 6, original=Original(latents, 0.6)), expected)
