"""Stage ``diffusion``: UNet and pose adapter, trained together on encoded scenes, behind a finished text encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from tqdm import tqdm

from mixshow.puppets.captions import caption
from mixshow.puppets.networks import make_adapter, make_scheduler, make_unet
from mixshow.puppets.tokenizer import make_tokenizer
from mixshow.puppets.training import latents, text
from mixshow.puppets.training.loop import Plan, Trainer, autocast, device, load_average, step_generators
from mixshow.sampling.pose import draw_openpose

STAGE = "diffusion"
_SEED = 303
_POSED = 0.4  # share of the batches that are guided by the pose adapter
_DROPPED = 0.1  # share of the prompts replaced by the empty prompt, for classifier-free guidance
_SNR_LIMIT = 5.0
_WEIGHT_LIMIT = 10.0
_NOISE_OFFSET = 0.03


def make_modules() -> dict[str, nn.Module]:
    """Everything this stage trains."""
    return {
        "unet": make_unet(),
        "adapter": make_adapter(),
    }


def load(folder: Path) -> dict[str, nn.Module]:
    """The trained modules (moving average), in evaluation mode."""
    modules = make_modules()
    load_average(folder, STAGE, modules)
    return {name: module.eval().requires_grad_(False) for name, module in modules.items()}


def train(folder: Path, steps: int, stop_at: int | None = None) -> None:
    """Train (or go on training) the diffusion model."""
    torch.manual_seed(_SEED)
    on = device()
    modules = {name: module.to(on) for name, module in make_modules().items()}
    if on.type == "cpu":
        # The fused attention's backward pass in bf16 is slow on processors: 1.06 s for a UNet step, 0.78 s with this.
        unet = modules["unet"]
        assert isinstance(unet, UNet2DConditionModel)
        unet.set_attn_processor(AttnProcessor())
    text_encoder = text.load(folder).to(on)
    tokenizer = make_tokenizer()
    encoded, _ = latents.load(folder)
    scenes = {
        name: [latents.GROUPS[name].scene(index) for index in tqdm(range(len(values)), f"scenes {name}", mininterval=5)]
        for name, values in encoded.items()
    }
    signal = make_scheduler().alphas_cumprod
    snr = signal / (1 - signal)
    # Min-SNR weighting (arXiv 2303.09556), with the velocity loss's emphasis on high noise: what a prompt decides is
    # decided there, where the plain noise loss hardly counts.
    weights = ((snr.clamp(max=_SNR_LIMIT) + 1) / snr).clamp(max=_WEIGHT_LIMIT).to(on)
    names = list(latents.GROUPS)
    shares = np.array([latents.GROUPS[name].weight for name in names])

    def loss_of(step: int) -> Tensor:
        rng, generator = step_generators(_SEED, step)
        name = str(rng.choice(names, p=shares / shares.sum()))
        group = latents.GROUPS[name]
        rows = rng.integers(len(encoded[name]), size=group.batch).tolist()
        chosen = [scenes[name][row] for row in rows]
        prompts = [
            "" if rng.random() < _DROPPED else caption(scene, latents.caption_generator(step, row))
            for scene, row in zip(chosen, rows, strict=True)
        ]
        tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(on)

        clean = encoded[name][rows].float()
        noise = torch.randn(clean.shape, generator=generator)
        noise += _NOISE_OFFSET * torch.randn(*clean.shape[:2], 1, 1, generator=generator)
        times = torch.randint(len(signal), (len(rows),), generator=generator)
        level = signal[times].view(-1, 1, 1, 1)
        noisy = (level.sqrt() * clean + (1 - level).sqrt() * noise).to(on)
        noise, times = noise.to(on), times.to(on)

        residuals = None
        with autocast(on):
            if rng.random() < _POSED:
                pictures = np.stack([np.asarray(draw_openpose(scene.people, scene.size)) for scene in chosen])
                poses = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(on) / 255
                residuals = modules["adapter"](poses)
            with torch.no_grad():
                hidden = text_encoder(tokens).last_hidden_state
            predicted = modules["unet"](
                noisy, times, hidden, down_intrablock_additional_residuals=residuals, return_dict=False
            )[0]
        errors = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
        return (weights[times] * errors).mean()

    Trainer(folder, STAGE, modules, Plan(steps, 1e-3, warmup=200)).run(loss_of, stop_at)
