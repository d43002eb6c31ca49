"""Networks that depend on the diffusion time follow the model they are on, in training and sampling."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.core.progress import log
from mixshow.lycoris import create_network
from mixshow.models import Base
from tests.lycoris.timed import STEPS, by_hand, forward, hooks, sampled, trained, with_short_schedule


@pytest.fixture
def base(tiny: Base) -> Base:
    return with_short_schedule(tiny)


@pytest.mark.parametrize(("min_rank", "power"), [(1, 1.0), (2, 2.0)])
def test_every_forward_has_the_ranks_of_its_time(base: Base, min_rank: int, power: float) -> None:
    network = trained({"unet": base.unet}, min_rank=min_rank, rank_power=power)
    network.num_train_timesteps = STEPS
    for timestep in (0, 180, 400, 499):
        with by_hand(base.unet, (network, min_rank, power)):
            expected = forward(base, timestep)
        with by_hand(base.unet, (network, None, power)):
            whole = forward(base, timestep)
        with network:
            torch.testing.assert_close(forward(base, timestep), expected)
        assert timestep == 0 or (whole - expected).norm() > 1e-3 * whole.norm()


def test_each_picture_of_a_batch_has_its_own_time(base: Base) -> None:
    network = trained({"unet": base.unet})
    network.num_train_timesteps = STEPS
    with network:
        together = forward(base, torch.tensor([100, 450]))
        for picture, timestep in enumerate((100, 450)):
            torch.testing.assert_close(together[picture], forward(base, timestep)[picture])


def test_several_networks_each_follow_with_their_own_ranks(base: Base) -> None:
    first, second = (trained({"unet": base.unet}, seed=n, min_rank=1 + 2 * n, rank_power=1.0 + n) for n in (0, 1))
    first.num_train_timesteps = second.num_train_timesteps = STEPS
    with by_hand(base.unet, (first, 1, 1.0), (second, 3, 2.0)):
        expected = forward(base, 333)
    with first, second:
        torch.testing.assert_close(forward(base, 333), expected)


def test_nothing_stays_on_the_model(base: Base) -> None:
    network = trained(base.models)
    network.num_train_timesteps = STEPS
    before, expected = sampled(base), forward(base, 400)
    with pytest.raises(MixshowError, match="stop"), network:
        assert hooks(base.unet) > 0
        forward(base, 400)
        raise MixshowError("stop")
    assert hooks(base.unet) == 0
    assert all(adapter._mask is None for adapter in network.adapters.values())
    assert torch.equal(forward(base, 400), expected) and torch.equal(sampled(base), before)


def test_text_encoders_and_unknown_schedules_have_all_ranks(base: Base) -> None:
    network = trained(base.models)
    with network:
        forward(base, 400)
        assert all(adapter._mask is None for adapter in network.adapters.values())
        network.num_train_timesteps = STEPS
        forward(base, 400)
        told = {name for name, adapter in network.adapters.items() if adapter._mask is not None}
    assert told == {name for name in network.adapters if name.startswith("lora_unet")}


def test_merged_it_has_all_ranks_and_says_so(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "info", lambda text, *_: said.append(text))
    network = trained({"unet": base.unet})
    network.num_train_timesteps = STEPS
    with by_hand(base.unet, (network, None, 1.0)):
        expected = forward(base, 400)
    with network:
        network.merge()
        try:
            torch.testing.assert_close(forward(base, 400), expected)
        finally:
            network.unmerge()
    assert [text for text in said if "merged with all ranks" in text]


def test_checkpointing_runs_with_the_same_ranks_again(base: Base) -> None:
    network = trained({"unet": base.unet}).requires_grad_(True)
    network.num_train_timesteps = STEPS
    latents, states = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((4, 8, 8), (24, 16)))
    found = []
    base.unet.train()
    for checkpointed in (False, True):
        (base.unet.enable_gradient_checkpointing if checkpointed else base.unet.disable_gradient_checkpointing)()
        with network:
            base.unet(latents, torch.tensor([30, 420]), encoder_hidden_states=states).sample.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in network.parameters()])
        network.zero_grad()
    for gradient, again in zip(*found):
        torch.testing.assert_close(again, gradient)


class Timed(nn.Module):
    """A model of one layer whose forward takes a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.layer(x) + timestep


def test_the_compiler_follows() -> None:
    model, x = Timed().requires_grad_(False), torch.randn(2, 6)
    network = create_network({"model": model}, algo="tlora", dim=5)
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter)
    network.num_train_timesteps = STEPS
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with network, torch.no_grad():
        for time in (torch.tensor(0), torch.tensor(450), torch.tensor(250)):
            torch.testing.assert_close(compiled(x, time), model(x, timestep=time))


def test_a_copied_model_tells_the_same_adapters() -> None:
    model, x, time = Timed().requires_grad_(False), torch.randn(2, 6), torch.tensor(450)
    network = create_network({"model": model}, algo="tlora", dim=5)
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter)
    network.num_train_timesteps = STEPS
    with network, torch.no_grad():
        copied = copy.deepcopy(model)
        assert torch.equal(copied(x, time), model(x, time))
        network.set_timestep(None)
        assert torch.equal(copied(x, time), model(x, time))
