"""The loss of a step counts each place of a picture as the options say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixshow.edlora.layerwise import layerwise_states
from mixshow.edlora.step import LossOptions, StepInputs, training_loss
from mixshow.models.base import Base
from mixshow.models.prompts import prompt_states
from mixshow.models.schedule import make_scheduler


@pytest.fixture
def inputs(tiny: Base) -> StepInputs:
    draw = torch.Generator().manual_seed(0)
    shape = (2, tiny.unet.config.in_channels, 8, 8)
    canvas, subject = torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
    canvas[0, :, :, :2] = 0
    subject[:, :, 2:5, 3:6] = 1
    return StepInputs(
        torch.randn(shape, generator=draw),
        torch.randn(shape, generator=draw),
        torch.tensor([100, 700]),
        prompt_states(tiny, ["a", "b"]),
        canvas,
        subject,
    )


@torch.no_grad()
def loss_of(base: Base, inputs: StepInputs, options: LossOptions) -> float:
    with layerwise_states(base.unet):
        return training_loss(base.unet, make_scheduler(base, "DDPM"), inputs, options).item()


@torch.no_grad()
def weighted_error(base: Base, inputs: StepInputs, weights: Tensor) -> float:
    """The mean error of each picture under weights `[batch, 1, h, w]`, averaged over pictures."""
    noisy = make_scheduler(base, "DDPM").add_noise(inputs.latents, inputs.noise, inputs.timesteps)
    with layerwise_states(base.unet):
        predicted = base.unet(noisy, inputs.timesteps, **inputs.states.for_unet(noisy)).sample
    squares = (predicted - inputs.noise).square().sum(1, keepdim=True)
    return ((squares * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))).mean().item()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_rest_of_the_picture_counts_its_weight_beside_the_subject(tiny: Base, inputs: StepInputs, share: float):
    assert inputs.subject_mask is not None
    weights = inputs.subject_mask + share * (inputs.image_mask - inputs.subject_mask)
    found = loss_of(tiny, inputs, LossOptions(masked=True, unmasked_weight=share))
    assert found == pytest.approx(weighted_error(tiny, inputs, weights), rel=1e-5)


def test_a_full_weight_is_the_loss_without_a_mask(tiny: Base, inputs: StepInputs):
    full = loss_of(tiny, inputs, LossOptions(masked=True, unmasked_weight=1.0))
    assert full == loss_of(tiny, inputs, LossOptions())
    assert full != pytest.approx(loss_of(tiny, inputs, LossOptions(masked=True)), rel=1e-3)
