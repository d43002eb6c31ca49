from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mixshow.core.errors import MixshowError
from mixshow.models import Base, PromptStates, make_scheduler, prompt_states
from mixshow.sampling.conditions import Condition, adapter_condition
from mixshow.sampling.denoise import denoise
from mixshow.sampling.generate import sample, start_noise
from mixshow.sampling.guide import UNetInput
from mixshow.sampling.precision import Precision
from tests.tiny import tiny_adapter


def run(base: Base, seeds: list[int], **keywords: object) -> torch.Tensor:
    scheduler = make_scheduler(base, "DPMSolverMultistep")
    scheduler.set_timesteps(4)
    with torch.no_grad():
        states = prompt_states(base, ["a dog"] * len(seeds))
        return denoise(base, scheduler, start_noise(base, seeds, 8, 8), states, **keywords)  # type: ignore[arg-type]


def test_a_seed_gives_its_picture_in_any_batch(tiny: Base) -> None:
    assert torch.equal(start_noise(tiny, [5], 8, 8)[0], start_noise(tiny, [1, 5], 8, 8)[1])
    for scheduler in ("DPMSolverMultistep", "EulerAncestralDiscrete"):
        options = {"steps": 3, "scheduler": scheduler, "precision": Precision.FP32}
        together = sample(tiny, ["a dog", "a boy", "a boy"], seeds=[1, 5, 9], batch_size=2, **options)
        alone = sample(tiny, ["a boy"], seeds=[5], **options)[0]
        difference = np.asarray(together[1], dtype=int) - np.asarray(alone, dtype=int)
        assert abs(difference).max() <= 1  # sums in another order move last bits


def test_guidance_one_computes_no_negative_half(tiny: Base) -> None:
    batches = []
    hook = tiny.unet.register_forward_pre_hook(lambda _, arguments: batches.append(len(arguments[0])))
    try:
        negative = prompt_states(tiny, ["red"])
        plain = run(tiny, [0])
        one = run(tiny, [0], negative_states=negative, guidance=1.0)
        guided = run(tiny, [0], negative_states=negative, guidance=3.0)
    finally:
        hook.remove()
    assert batches == [1] * 8 + [2] * 4
    assert torch.equal(plain, one)
    assert not torch.equal(plain, guided)


def test_adapter_weight_and_span(tiny: Base) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    adapter = tiny_adapter(tiny)
    without = run(tiny, [0, 1])
    assert torch.equal(run(tiny, [0, 1], condition=adapter_condition(adapter, [picture], weight=0)), without)
    whole = adapter_condition(adapter, [picture])
    assert not torch.equal(run(tiny, [0, 1], condition=whole), without)
    first_half = Condition(whole.features, span=(0.0, 0.5))
    latents = torch.zeros(2, 4, 8, 8)
    steps = [UNetInput(latents, torch.tensor(0), PromptStates(latents), step, 4) for step in range(4)]
    assert [bool(first_half.for_unet(step)) for step in steps] == [True, True, False, False]
    assert whole.for_unet(steps[3])


def test_each_picture_of_a_batch_has_its_own_pose(tiny: Base) -> None:
    rng = np.random.default_rng(0)
    poses = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(2)]
    adapter = tiny_adapter(tiny)
    both = run(tiny, [0, 1], condition=adapter_condition(adapter, poses))
    second = run(tiny, [1], condition=adapter_condition(adapter, poses[1:]))
    torch.testing.assert_close(both[1:], second, rtol=1e-4, atol=1e-4)
    assert len(adapter_condition(adapter, poses).part(1, 3).features[0]) == 1


def test_callback_sees_every_step(tiny: Base) -> None:
    steps = []
    run(tiny, [0], callback=lambda step: steps.append((step["step"], step["steps"], tuple(step["latents"].shape))))
    assert steps == [(i, 4, (1, 4, 8, 8)) for i in range(4)]


def test_sizes_the_base_cannot_make_are_refused(tiny: Base) -> None:
    with pytest.raises(MixshowError, match=r"width: expected a multiple of 64 pixels.*found 100; the nearest is 128"):
        sample(tiny, ["a dog"], seeds=[0], width=100, height=64)
    assert sample(tiny, ["a dog"], seeds=[0], width=128, steps=1)[0].size == (128, 64)
