"""Networks that depend on the diffusion time, what they do to a model by hand, and a base to try them on."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mixshow.lycoris import Network, create_network
from mixshow.models import Base, make_scheduler, prompt_states
from mixshow.sampling.denoise import denoise

STEPS = 500  # another length than every default


def with_short_schedule(tiny: Base) -> Base:
    """A copy of the tiny base with a shorter noise schedule and a UNet in float64."""
    schedule = {**tiny.scheduler_config, "num_train_timesteps": STEPS}
    return dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet).double(), scheduler_config=schedule)


def trained(models: dict[str, nn.Module], *, seed: int = 0, **options: Any) -> Network:
    """A T-LoRA away from its start, on the attention of all models."""
    network = create_network(models, algo="tlora", preset="attn-only", dim=5, alpha=4.0, **options).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def by_hand(unet: nn.Module, *changes: tuple[Network, int | None, float]) -> Iterator[None]:
    """Before each forward the formula of networks with this min_rank and power is put into the UNet's weights."""
    kept = {name: weight.clone() for name, weight in unet.state_dict().items()}

    def change(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        unet.load_state_dict(kept)
        for network, min_rank, power in changes:
            for name, adapter in network.adapters.items():
                if name.startswith("lora_unet"):
                    share = (STEPS - float(arguments[1])) / STEPS
                    used = 5 if min_rank is None else int(share**power * (5 - min_rank)) + min_rank
                    network.targets[name].weight += formula(adapter, used)

    hook = unet.register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        unet.load_state_dict(kept)


def formula(adapter: Any, used: int) -> Tensor:
    now = adapter.left[:, :used] * adapter.values[:used] @ adapter.right[:used]
    start = adapter.start
    before = start.left[:, :used] * start.values[:used] @ start.right[:used]
    return (adapter.alpha / adapter.rank * (now - before)).reshape(adapter.shape)


@torch.no_grad()
def forward(base: Base, timestep: int | Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    states = torch.randn(2, 24, 16, generator=generator, dtype=torch.float64)
    time = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep)
    return base.unet(latents, time, encoder_hidden_states=states).sample


def sampled(base: Base, prompt: str = "a boy") -> Tensor:
    scheduler = make_scheduler(base)
    scheduler.set_timesteps(3)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    states = prompt_states(base, [prompt])
    return denoise(base, scheduler, latents, states, prompt_states(base, [""]), guidance=3.0)


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_pre_hooks_with_kwargs) for module in model.modules()
    )
