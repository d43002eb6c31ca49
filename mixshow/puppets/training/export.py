"""Stage ``export``: what the package ships, from whatever checkpoints exist."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, T2IAdapter

from mixshow.core.files import folder_written_atomically, write_json, write_safetensors
from mixshow.puppets import judge as judge_module
from mixshow.puppets import keypoints as keypoints_module
from mixshow.puppets.networks import make_scheduler
from mixshow.puppets.tokenizer import make_tokenizer, vocabulary
from mixshow.puppets.training import autoencoder, diffusion, latents, text
from mixshow.puppets.training.loop import checkpoint_path, load_average
from mixshow.puppets.world import WORLD_VERSION


def export(folder: Path, weights: Path) -> list[Path]:
    """Write the base, the adapter, the judge and the key-point finder in fp16; returns what was written."""
    written = []
    if checkpoint_path(folder, diffusion.STAGE).exists():
        written += _export_base(folder, weights)
    for stage, make in (("judge", judge_module.JudgeNet), ("keypoints", keypoints_module.KeypointNet)):
        if checkpoint_path(folder, stage).exists():
            network = make()
            load_average(folder, stage, {stage: network})
            tensors = {
                key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()
            }
            path = weights / f"{stage}.safetensors"
            write_safetensors(path, tensors, {"world_version": str(WORLD_VERSION)})
            written.append(path)
    return written


def _export_base(folder: Path, weights: Path) -> list[Path]:
    modules = diffusion.load(folder)
    vae = autoencoder.load(folder)
    _, factor = latents.load(folder)
    vae.register_to_config(scaling_factor=factor)
    tokenizer = make_tokenizer()
    pipeline = StableDiffusionPipeline(
        vae=vae.to(torch.float16),
        text_encoder=text.load(folder).to(torch.float16),
        tokenizer=tokenizer,
        unet=modules["unet"].to(torch.float16),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with folder_written_atomically(weights / "base") as target:
        pipeline.save_pretrained(target, safe_serialization=True)
        # Programs that read CLIP's original tokenizer files find them too.
        numbers, merges = vocabulary()
        (target / "tokenizer" / "vocab.json").write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (target / "tokenizer" / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        state = torch.load(checkpoint_path(folder, diffusion.STAGE), map_location="cpu", weights_only=True, mmap=True)
        write_json(target / "training.json", {"world_version": WORLD_VERSION, "diffusion_steps": int(state["step"])})
    with folder_written_atomically(weights / "adapter") as target:
        adapter = modules["adapter"].to(torch.float16)
        assert isinstance(adapter, T2IAdapter)
        adapter.save_pretrained(target, safe_serialization=True)
    return [weights / "base", weights / "adapter"]
