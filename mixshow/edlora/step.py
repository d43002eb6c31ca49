"""One training step as a pure function of tensors: noise prediction, masked, with attention regularisation."""

from __future__ import annotations

import dataclasses

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import Tensor

from mixshow.core.attachment import Attachment
from mixshow.edlora.attention_maps import AttentionRecorder
from mixshow.edlora.losses import attention_error, masked_error
from mixshow.models.prompts import PromptStates


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """What one step is computed from.

    Attributes:
        latents: `[batch, channels, h, w]`, scaled for the UNet.
        noise: of the same shape, the noise offset included.
        timesteps: `[batch]`.
        states: of one prompt per picture; gradients flow through them.
        image_mask: `[batch, 1, h, w]`, 1 where the picture lies on its canvas.
        subject_mask: `[batch, 1, h, w]`, 1 on the subject; None: no masks.
        positions: places of the concept tokens in the prompts `[batch, tokens]`; None: no regularisation.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    states: PromptStates
    image_mask: Tensor
    subject_mask: Tensor | None = None
    positions: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """
    Attributes:
        masked: count the error on the subject only (else on the whole picture, without its padding).
        unmasked_weight: with `masked`, what the rest of the picture counts beside the subject, 0 to 1.
        attention_weight: of the attention regularisation; 0: none.
        attention_identity: the subject token's map shall equal the mask instead of only staying inside it.
        min_snr: gamma of min-SNR weighting (arXiv 2303.09556); None: none.
    """

    masked: bool = False
    unmasked_weight: float = 0.0
    attention_weight: float = 0.0
    attention_identity: bool = False
    min_snr: float | None = None


def training_loss(
    unet: UNet2DConditionModel,
    schedule: DDPMScheduler,
    inputs: StepInputs,
    options: LossOptions,
    *,
    until_backward: Attachment | None = None,
) -> Tensor:
    """The loss of a batch, a scalar.

    The UNet must already take layer-wise states (`layerwise_states`), and networks be attached.

    Args:
        schedule: the base's noise schedule; its prediction type says what the UNet predicts.
        until_backward: takes over what records attention maps, to be detached after the backward pass. Needed with
            gradient checkpointing, which runs the forward pass again there and must find it the same.
    """
    noisy = schedule.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
    if not options.attention_weight or inputs.subject_mask is None or inputs.positions is None:
        prediction = unet(noisy, inputs.timesteps, **inputs.states.for_unet(noisy)).sample
        return _prediction_loss(prediction, schedule, inputs, options)
    recorder = AttentionRecorder(inputs.positions)
    with Attachment() as own:
        (until_backward or own).add(recorder.attach(unet).detach)
        prediction = unet(noisy, inputs.timesteps, **inputs.states.for_unet(noisy)).sample
    attention = attention_error(
        recorder.maps(*inputs.latents.shape[-2:]), inputs.subject_mask, identity=options.attention_identity
    )
    return _prediction_loss(prediction, schedule, inputs, options) + options.attention_weight * attention


def _prediction_loss(prediction: Tensor, schedule: DDPMScheduler, inputs: StepInputs, options: LossOptions) -> Tensor:
    velocity = schedule.config.prediction_type == "v_prediction"
    target = inputs.noise
    if velocity:
        target = schedule.get_velocity(inputs.latents, inputs.noise, inputs.timesteps)
    weights = inputs.image_mask
    if options.masked and inputs.subject_mask is not None:
        weights = torch.maximum(inputs.subject_mask, options.unmasked_weight * inputs.image_mask)
    error = masked_error(prediction, target, weights)
    if options.min_snr is not None:
        snr = compute_snr(schedule, inputs.timesteps)
        error = error * torch.clamp(snr, max=options.min_snr) / (snr + 1 if velocity else snr)
    return error.mean()
