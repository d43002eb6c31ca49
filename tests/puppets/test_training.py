"""The training script's stages, at a scale of seconds."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_json
from mixshow.puppets.training import diffusion, stages
from mixshow.puppets.training.loop import Plan, Trainer, checkpoint_path
from mixshow.puppets.training.restore import restore


def _trainer(folder: Path, steps: int = 6) -> tuple[Trainer, nn.Linear]:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    return Trainer(folder, "toy", {"model": model}, Plan(steps, 1e-2, warmup=2)), model


def _loss(model: nn.Linear, step: int) -> Tensor:
    values = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
    return (model(values) - values).square().mean()


def test_resuming_equals_never_stopping(tmp_path: Path) -> None:
    trainer, model = _trainer(tmp_path / "whole")
    trainer.run(lambda step: _loss(model, step))
    first, stopped = _trainer(tmp_path / "parts")
    first.run(lambda step: _loss(stopped, step), stop_at=3)
    second, resumed = _trainer(tmp_path / "parts")
    assert second.step == 3
    second.run(lambda step: _loss(resumed, step))
    assert torch.equal(model.weight, resumed.weight)
    assert all(torch.equal(a, b) for a, b in zip(trainer.average, second.average, strict=True))


def test_ctrl_c_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    trainer, model = _trainer(tmp_path)

    def loss_of(step: int) -> Tensor:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return _loss(model, step)

    with pytest.raises(KeyboardInterrupt):
        trainer.run(loss_of)
    assert torch.load(checkpoint_path(tmp_path, "toy"), weights_only=True)["step"] == 3


@pytest.mark.slow
def test_the_whole_way_runs_at_a_tiny_scale(tmp_path: Path) -> None:
    """From nothing to exported weights in the layout of a diffusers folder; a second run has nothing left to train."""
    seconds = stages.run(tmp_path / "work", scale=0.0005, weights=tmp_path / "weights")
    assert list(seconds) == list(stages.stages())
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert (tmp_path / "weights" / "base" / part).is_dir()
    assert (tmp_path / "weights" / "base" / "tokenizer" / "merges.txt").is_file()
    for name in ("judge.safetensors", "keypoints.safetensors"):
        assert (tmp_path / "weights" / name).is_file()
    checkpoint = checkpoint_path(tmp_path / "work", "diffusion")
    before = torch.load(checkpoint, weights_only=True)
    stages.run(tmp_path / "work", only="diffusion", scale=0.0005)
    planned = max(2, round(stages.stages()["diffusion"].amount * 0.0005))
    assert torch.load(checkpoint, weights_only=True)["step"] == before["step"] == planned


def test_restored_weights_go_on_from_their_step_with_a_new_warm_up(tmp_path: Path) -> None:
    """What ships becomes checkpoints; the optimizer is new, and stopping then changes nothing."""
    lengths = {name: stage.amount for name, stage in stages.stages().items()}
    restore(tmp_path, stages.WEIGHTS, lengths)
    modules = diffusion.load(tmp_path)
    shipped = UNet2DConditionModel.from_pretrained(stages.WEIGHTS / "base" / "unet").state_dict()
    assert all(torch.equal(value, shipped[key]) for key, value in modules["unet"].state_dict().items())
    step = torch.load(checkpoint_path(tmp_path, diffusion.STAGE), weights_only=True)["step"]
    assert step == read_json(stages.WEIGHTS / "base" / "training.json")["diffusion_steps"]
    with pytest.raises(MixshowError, match="already there"):
        restore(tmp_path, stages.WEIGHTS, lengths)


def test_a_new_optimizer_warms_up_from_where_it_starts() -> None:
    plan = Plan(1000, 1.0, warmup=100)
    assert plan.rate_at(500, fresh_at=500) == pytest.approx(plan.rate_at(500) / 100)
    assert plan.rate_at(600, fresh_at=500) == plan.rate_at(600)
