"""The published regional sampler's latents, reproduced."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from mixshow.core.files import read_safetensors
from mixshow.models import load_base, make_scheduler
from mixshow.sampling.conditions import adapter_condition, load_adapter
from mixshow.sampling.denoise import denoise
from mixshow.sampling.openpose import read_picture
from mixshow.sampling.published_regions import parse_regions
from mixshow.sampling.regional_attention import RegionPlan, regional_attention


def test_published_latents_are_reproduced(shared_fixtures: Path) -> None:
    folder = shared_fixtures / "published_reference"
    golden, _ = read_safetensors(folder / "region_golden.safetensors")
    settings = json.loads((folder / "region.json").read_text())
    base = load_base(folder / "fused", vae=folder / "base")
    plan = RegionPlan(
        parse_regions(settings["rewrite"]),
        settings["prompt"],
        settings["negative"],
        size=(settings["W"], settings["H"]),
    )
    scheduler = make_scheduler(base, "DPMSolverMultistep", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(settings["steps"])
    adapter = load_adapter(folder / "keypose_adapter", base)
    condition = adapter_condition(adapter, [read_picture(folder / "pose.png")])
    with torch.no_grad():
        states = plan.encode(base, guided=True)
    with regional_attention(base.unet, plan, states.states):
        latents = denoise(
            base,
            scheduler,
            golden["latents0"],
            states[1, :1],
            states[0, :1],
            guidance=settings["scale"],
            condition=condition,
        )
    assert (latents - golden["plain"]).norm() <= 1e-5 * golden["plain"].norm()
