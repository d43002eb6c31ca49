"""Pictures of a scene."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from diffusers import T2IAdapter
from PIL import Image
from torch import Tensor

from mixshow.models import Base
from mixshow.sampling.denoise import Callback
from mixshow.sampling.generate import latent_size, pictures_of_states, start_noise
from mixshow.sampling.regional_attention import RegionPlan, regional_attention
from mixshow.sampling.scene import ConditionReader, Scene
from mixshow.sampling.scene_guide import scene_guide


@torch.no_grad()
def compose(
    base: Base,
    scene: Scene,
    *,
    seeds: Sequence[int],
    adapter: T2IAdapter | None = None,
    readers: Sequence[ConditionReader] = (),
    batch_size: int = 1,
    callback: Callback | None = None,
) -> list[Image.Image]:
    """Make one picture of the scene per seed.

    Args:
        adapter: reads the scene's pose; needed when it has one.
        readers: the network that reads each of the scene's conditions.
        batch_size: pictures denoised together. The same seed gives the same picture to the last bit only in the
            same batch.
        callback: see `denoise`.

    Returns:
        RGB pictures of the scene's size.

    Raises:
        MixshowError: the size does not fit the base, or there is no such scheduler or option.
    """
    topology = base.topology
    native = topology.sample_size * topology.latent_factor
    size = scene.size or (native, native)
    grid = latent_size(base, *size)
    plan = RegionPlan(
        scene.regions,
        scene.prompt if scene.background_prompt is None else scene.background_prompt,
        scene.negative_prompt,
        size=size,
        edges=scene.edges,
        base_prompt=scene.prompt if scene.base_prompt is None else scene.base_prompt,
        schedule=scene.schedule,
    )
    states = plan.encode(base, guided=scene.guided)
    whole = states[:, plan.base_text : plan.base_text + 1]
    condition = scene_guide(scene, plan, grid, adapter, readers)
    guidance = scene.guidance if scene.guided_alike else guidance_map(plan, scene.guidance, grid).to(base.device)
    pictures: list[Image.Image] = []
    with regional_attention(base.unet, plan, states.states) if scene.regions else contextlib.nullcontext():
        for start in range(0, len(seeds), batch_size):
            batch = seeds[start : start + batch_size]
            pictures += pictures_of_states(
                base,
                whole[-1].expanded(len(batch)),
                whole[0].expanded(len(batch)) if scene.guided else None,
                seeds=batch,
                width=size[0],
                height=size[1],
                steps=scene.steps,
                guidance=guidance,
                scheduler=scene.scheduler,
                scheduler_options=scene.scheduler_options,
                condition=condition,
                noise=_start_noise(base, plan, batch, grid),
                before_step=plan.begin_step,
                callback=callback,
                precision=scene.precision,
            )
    return pictures


def guidance_map(plan: RegionPlan, guidance: float, grid: tuple[int, int]) -> Tensor:
    """The guidance of each latent position, `[rows, columns]`: the mean of what its regions ask for."""
    factors = [guidance, *(guidance if region.guidance is None else region.guidance for region in plan.regions)]
    return torch.einsum("r,rhw->hw", torch.tensor(factors, dtype=torch.float64), plan.shares(*grid)).float()


def _start_noise(base: Base, plan: RegionPlan, seeds: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """Start noise of the pictures, that of other seeds where regions have an offset.

    Each position has the noise of one seed, of the region with the largest share: a mean of two would be too weak.
    """
    offsets = [0, *(region.seed_offset for region in plan.regions)]
    noise = start_noise(base, seeds, *grid)
    if not any(offsets):
        return noise
    owner = plan.shares(*grid).argmax(0)
    offset = torch.tensor(offsets)[owner].to(base.device)
    for other in set(offsets) - {0}:
        noise = torch.where(offset == other, start_noise(base, [seed + other for seed in seeds], *grid), noise)
    return noise
