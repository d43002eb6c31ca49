"""Pictures of a scene."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from diffusers import T2IAdapter
from PIL import Image

from mixshow.models import Base
from mixshow.sampling.conditions import adapter_condition
from mixshow.sampling.denoise import Callback
from mixshow.sampling.generate import pictures_of_states
from mixshow.sampling.regional_attention import RegionPlan, regional_attention
from mixshow.sampling.scene import Scene


@torch.no_grad()
def compose(
    base: Base,
    scene: Scene,
    *,
    seeds: Sequence[int],
    adapter: T2IAdapter | None = None,
    batch_size: int = 1,
    callback: Callback | None = None,
) -> list[Image.Image]:
    """Make one picture of the scene per seed.

    Args:
        adapter: reads the scene's pose; needed when it has one.
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
    plan = RegionPlan(scene.regions, scene.prompt, scene.negative_prompt, size=size, edges=scene.edges)
    states = plan.encode(base, guided=scene.guidance != 1)
    condition = None
    if scene.pose is not None:
        if adapter is None:
            raise ValueError("a scene with a pose needs an adapter")
        condition = adapter_condition(adapter, [scene.pose.picture], weight=scene.pose.weight, span=scene.pose.span)
    pictures: list[Image.Image] = []
    with regional_attention(base.unet, plan, states.states) if scene.regions else contextlib.nullcontext():
        for start in range(0, len(seeds), batch_size):
            batch = seeds[start : start + batch_size]
            pictures += pictures_of_states(
                base,
                states[-1, :1].expanded(len(batch)),
                states[0, :1].expanded(len(batch)) if len(states) == 2 else None,
                seeds=batch,
                width=size[0],
                height=size[1],
                steps=scene.steps,
                guidance=scene.guidance,
                scheduler=scene.scheduler,
                scheduler_options=scene.scheduler_options,
                condition=condition,
                callback=callback,
                precision=scene.precision,
            )
    return pictures
