"""Schedulers of diffusers: which there are, and that pictures can be begun from with them."""

from __future__ import annotations

import pytest
import torch

from mixshow.core.errors import MixshowError
from mixshow.models import Base, make_scheduler, prompt_states
from mixshow.sampling.denoise import denoise
from mixshow.sampling.generate import start_noise, step_generators
from mixshow.sampling.original import Original

NAMES = (
    "DDIM", "DDPM", "DEISMultistep", "DPMSolverSinglestep", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete",
    "TCD", "PNDM", "UniPCMultistep",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_half_of_a_picture_is_kept(tiny: Base, name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    latents, keep = torch.randn(1, 4, 8, 8, generator=generator), torch.zeros(8, 8)
    keep[:, 4:] = 1
    steps: list[int] = []
    scheduler = make_scheduler(tiny, name)
    scheduler.set_timesteps(4)
    result = denoise(
        tiny,
        scheduler,
        start_noise(tiny, [0], 8, 8),
        prompt_states(tiny, ["a dog"]),
        original=Original(latents, 0.5, keep),
        generators=step_generators([0]),
        callback=lambda step: steps.append(step["step"]),
    )
    assert torch.equal(result[..., 4:], latents[..., 4:])
    assert result.isfinite().all() and not torch.allclose(result[..., :4], latents[..., :4])
    assert steps == list(range(len(scheduler.timesteps)))[2 * scheduler.order :]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FlowMatchEulerDiscrete", "this one is for models of another kind"),
        ("VQDiffusion", "this one is for models of another kind"),
        ("ConsistencyDecoder", "this one is for models of another kind"),
        ("DDIMSchedular", "did you mean 'DDIMScheduler'"),
    ],
)
def test_schedulers_that_do_not_fit(tiny: Base, name: str, message: str) -> None:
    with pytest.raises(MixshowError, match=message):
        make_scheduler(tiny, name)


def test_schedulers_that_need_more_packages(tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = type("LMSDiscreteScheduler", (), {"_backends": ["torch", "scipy"]})
    monkeypatch.setattr("diffusers.LMSDiscreteScheduler", stand_in)
    with pytest.raises(MixshowError, match="'LMSDiscrete': needs torch and scipy, of which something is not installed"):
        make_scheduler(tiny, "LMSDiscrete")
