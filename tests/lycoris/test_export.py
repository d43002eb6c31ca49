"""A network as LoRA or as deltas changes the base as the network itself does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris import Network, create_network, load_network
from mixshow.lycoris.export import delta_tensors, lora_tensors

MODEL = nn.ModuleDict({"linear": nn.Linear(12, 16), "conv": nn.Conv2d(8, 16, 3)}).requires_grad_(False)


def made(algo: str, **options: Any) -> Network:
    network = create_network({"model": MODEL}, algo=algo, dim=2, alpha=3.0, **options)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def assert_same_deltas(network: Network, other: Network) -> None:
    for (name, delta), (other_name, found) in zip(network.deltas(), other.deltas()):
        assert name == other_name
        torch.testing.assert_close(found, delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("algo", "options", "rank"),
    [
        ("loha", {}, 4),
        ("loha", {"use_tucker": True}, 4),
        ("lokr", {"factor": 2}, 4),
        ("lokr", {"factor": 2, "use_tucker": True}, 4),
        ("tlora", {}, 4),
        ("glora", {}, None),
        ("locon", {"use_tucker": True}, 2),
        ("dylora", {"block_size": 1}, 2),
    ],
)
def test_low_rank_changes_are_loras(algo: str, options: dict[str, Any], rank: int | None) -> None:
    network = made(algo, **options)
    tensors = lora_tensors(network)
    assert rank is None or tensors["lycoris_linear.lora_down.weight"].shape == (rank, 12)
    again = load_network({"model": MODEL}, tensors)
    assert {adapter.name for adapter in again.adapters.values()} == {"locon"}
    assert_same_deltas(network, again)


@pytest.mark.parametrize("algo", ["glokr", "diag-oft", "ia3", "full", "locon"])
def test_every_change_is_a_delta(algo: str) -> None:
    network = made(algo, **({"weight_decompose": True} if algo == "locon" else {}))
    again = load_network({"model": MODEL}, delta_tensors(network))
    assert {adapter.name for adapter in again.adapters.values()} == {"full"}
    assert_same_deltas(network, again)


def test_changes_without_a_low_rank_are_named() -> None:
    with pytest.raises(MixshowError, match=r"2 of 2 changes have no low rank, such as 'lycoris_linear' \(diag-oft\)"):
        lora_tensors(made("diag-oft"))
