"""Checkpoints from the weights that ship, so that training can go on from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_json
from mixshow.puppets.training import autoencoder, diffusion, text
from mixshow.puppets.training.loop import checkpoint_path, save_atomically


def restore(folder: Path, weights: Path, lengths: Mapping[str, int]) -> None:
    """Write checkpoints of the autoencoder, the text encoder and the diffusion model from exported weights.

    The weights are the moving averages, in fp16; what the optimizers knew is gone; each starts anew with its warm-up.

    Args:
        folder: of checkpoints; it must have none of these stages yet.
        weights: what the stage `export` wrote.
        lengths: by stage, the steps that count as done for those whose export does not say it.

    Raises:
        MixshowError: a checkpoint is already there.
    """
    base = weights / "base"
    stages: dict[str, dict[str, nn.Module]] = {
        autoencoder.STAGE: {"vae": AutoencoderKL.from_pretrained(base / "vae")},
        # The head that names phrases is not exported; nothing after the stage needs it.
        text.STAGE: text.make_modules() | {"text_encoder": CLIPTextModel.from_pretrained(base / "text_encoder")},
        diffusion.STAGE: {
            "unet": UNet2DConditionModel.from_pretrained(base / "unet"),
            "adapter": T2IAdapter.from_pretrained(weights / "adapter"),
        },
    }
    steps = dict(lengths) | {diffusion.STAGE: int(read_json(base / "training.json")["diffusion_steps"])}
    for stage in stages:
        if (path := checkpoint_path(folder, stage)).exists():
            raise MixshowError(f"{path} is already there: expected a folder without checkpoints; choose another --out")
    for stage, modules in stages.items():
        states = {name: module.float().state_dict() for name, module in modules.items()}
        step = steps[stage]
        state = {"step": step, "fresh_at": step, "modules": states, "average": states, "optimizer": None}
        save_atomically(state, checkpoint_path(folder, stage))
