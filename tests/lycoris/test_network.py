"""Networks: zero at the start, forward equals merged weights, off again without a trace, files round trip."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris import create_network, load_network
from mixshow.lycoris.network import Network
from mixshow.lycoris.registry import ALGORITHMS


class Block(nn.Module):
    """A linear layer, a strided 3x3 and a 1x1 convolution in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(6, 5, 1)
        self.linear = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.mix(self.conv(x)).movedim(1, -1))


TARGETS = ["lora_unet_conv", "lora_unet_mix", "lora_unet_linear"]


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().double().requires_grad_(False)


def randomised(network: Network) -> Network:
    for parameter in network.parameters():
        generator = torch.Generator().manual_seed(parameter.numel())
        parameter.data = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
    return network


@pytest.fixture(params=sorted(ALGORITHMS))
def network(request: pytest.FixtureRequest, block: Block) -> Network:
    return create_network({"unet": block}, algo=request.param, targets=TARGETS, dim=2, alpha=3.0).double()


X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_fresh_network_changes_nothing(block: Block, network: Network) -> None:
    before = block(X)
    with network:
        torch.testing.assert_close(block(X), before, rtol=0, atol=0)


@pytest.mark.parametrize("multiplier", [1.0, 0.7, 0.0, -0.5])
def test_forward_equals_merged_weights(block: Block, network: Network, multiplier: float) -> None:
    randomised(network.double())
    merged = copy.deepcopy(block)
    for name, delta in network.deltas():
        getattr(merged, name.removeprefix("lora_unet_")).weight.data += multiplier * delta
    network.multiplier = multiplier
    with network:
        torch.testing.assert_close(block(X), merged(X), rtol=1e-12, atol=1e-12)


def test_it_comes_off_again_also_after_an_error(block: Block, network: Network) -> None:
    randomised(network)
    before, keys = block(X), list(block.state_dict())
    with pytest.raises(RuntimeError), network:
        assert not torch.equal(block(X), before)
        assert list(block.state_dict()) == keys
        raise RuntimeError
    assert torch.equal(block(X), before)
    assert not any(module._forward_hooks for module in block.modules())


def test_two_networks_add_up(block: Block, network: Network) -> None:
    randomised(network)
    other = load_network({"unet": block}, network.file_tensors(), multiplier=2.0).double()
    both = load_network({"unet": block}, network.file_tensors(), multiplier=3.0).double()
    with both:
        expected = block(X)
    with network, other:
        torch.testing.assert_close(block(X), expected, rtol=1e-5, atol=1e-5)


def test_only_the_network_gets_gradients(block: Block, network: Network) -> None:
    with network:
        block(X).square().sum().backward()
    assert all(parameter.grad is None for parameter in block.parameters())
    assert any(parameter.grad is not None for parameter in network.parameters())


def test_files_round_trip(block: Block, network: Network) -> None:
    randomised(network)
    again = load_network({"unet": block}, network.file_tensors())
    for (name, delta), (other_name, other) in zip(network.deltas(), again.deltas()):
        assert name == other_name
        torch.testing.assert_close(other, delta.float(), rtol=1e-6, atol=1e-6)


def test_low_rank_factors_are_the_delta(network: Network) -> None:
    for adapter in randomised(network).adapters.values():
        factors = adapter.low_rank()
        assert factors is not None
        torch.testing.assert_close((factors[0] @ factors[1]).float(), adapter.delta().flatten(1).float())


def test_another_bases_file_is_refused(block: Block, network: Network) -> None:
    tensors = dict(network.file_tensors())
    with pytest.raises(MixshowError, match="names no module of this base"):
        load_network({"unet": block}, {"lora_unet_gone.lora_up.weight": torch.zeros(1, 1)})
    tensors["lora_unet_linear.lora_down.weight"] = torch.zeros(2, 9)
    with pytest.raises(MixshowError, match="other widths"):
        load_network({"unet": block}, tensors)
    with pytest.raises(MixshowError, match="no known algorithm"):
        load_network({"unet": block}, {"lora_unet_linear.mystery": torch.zeros(1)})
