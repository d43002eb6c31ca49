"""The published way, as the benchmark has it beside ours: the same picture, or it would be no comparison."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.compose_operations import counted, shape_of_base
from benchmarks.published_attention import PublishedRegion, encode_by_layer, published_attention
from mixshow.models import Base, PromptStates, make_scheduler
from mixshow.sampling.denoise import denoise
from mixshow.sampling.regional_attention import RegionPlan, regional_attention
from mixshow.sampling.regions import PixelBox, Region

SIZE = (128, 64)
REGIONS = [  # the last one overlaps both others, and vanishes in coarse layers
    Region(PixelBox(0, 0, 64, 64), "a boy", "blue"),
    Region(PixelBox(70, 10, 128, 64), "a girl", "red"),
    Region(PixelBox(40, 20, 90, 50), "a toy", ""),
]


@pytest.mark.parametrize("name", ["tiny", "sd2"])
def test_hard_boxes_are_the_published_picture(name: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(name)
    plan = RegionPlan(REGIONS, "a dog", "hat", size=SIZE)
    states = plan.encode(base, guided=True)
    with regional_attention(base.unet, plan, states.states):
        ours = denoised(base, states[1, :1], states[0, :1])
    published = [
        PublishedRegion(region.area, encode_by_layer(base, region.prompt, region.negative_prompt))
        for region in REGIONS
        if isinstance(region.area, PixelBox)
    ]
    away, towards = (PromptStates(half[None]) for half in encode_by_layer(base, "a dog", "hat"))
    before = dict(base.unet.attn_processors)
    with published_attention(base.unet, published, SIZE):
        theirs = denoised(base, towards, away)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert base.unet.attn_processors == before


def denoised(base: Base, towards: PromptStates, away: PromptStates) -> Tensor:
    scheduler = make_scheduler(base)
    scheduler.set_timesteps(2)
    noise = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    return denoise(base, scheduler, noise, towards, away, guidance=3.0)


@pytest.mark.slow
def test_regions_cost_little_beside_one_prompt() -> None:
    """Operations of a picture at Stable Diffusion 1.5's size, in the bounds that its time should keep."""
    costs = counted(shape_of_base(8), [3, 8], 512)
    whole = {name: text + first + 19 * later for name, (text, first, later) in costs.items()}
    for name, bound in (("3 regions, hard", 1.1), ("3 regions, soft", 1.1), ("8 regions, hard", 1.25)):
        assert 1 < whole[name] / whole["one prompt"] < bound
    assert costs["8 regions, hard"][2] < costs["8 regions, published way"][2]
