"""Networks in a model's weights: merged once, rounded once, and out again to the bit."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris import Network, create_network, load_network
from tests.lycoris.small import TARGETS, Block, X, made


def test_a_merged_network_that_is_attached_counts_once(block: Block) -> None:
    network = made(block)
    network.multiplier = 0.7
    with network:
        expected = block(X)
        network.merge()
        torch.testing.assert_close(block(X), expected, rtol=1e-12, atol=1e-12)
        network.unmerge()
        torch.testing.assert_close(block(X), expected, rtol=0, atol=0)


def test_the_multiplier_of_a_merged_network_stays(block: Block) -> None:
    network = made(block).merge()
    with pytest.raises(MixshowError, match="unmerge"):
        network.multiplier = 0.5
    network.multiplier = 1.0
    network.unmerge()
    network.multiplier = 0.5


def test_merging_twice_changes_nothing_more(block: Block) -> None:
    network, before = made(block), copy.deepcopy(block.state_dict())
    once = copy.deepcopy(network.merge() and block.state_dict())
    network.merge()
    assert all(torch.equal(tensor, once[name]) for name, tensor in block.state_dict().items())
    network.unmerge()
    network.unmerge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_a_failed_merge_leaves_the_weights(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    network, before = made(block), copy.deepcopy(block.state_dict())
    monkeypatch.setattr(network.adapters[TARGETS[-1]], "change_at", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        network.merge()
    assert not network.merged
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert all("_mixshow_networks" not in module.__dict__ for module in block.modules())


# Algorithms whose change depends on the weight, and one that does not.
DEPENDENT = [
    {"algo": "locon", "weight_decompose": True},
    {"algo": "lokr", "weight_decompose": True, "wd_on_out": False, "factor": 4},
    {"algo": "glora"},
    {"algo": "glokr", "factor": 4},
    {"algo": "ia3"},
    {"algo": "diag-oft", "rescaled": True},
    {"algo": "boft", "dim": 4},
    {"algo": "tlora"},
    {"algo": "full"},
]


@pytest.fixture
def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 8)).double().requires_grad_(False)


ROWS = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("keywords", DEPENDENT, ids=lambda keywords: keywords["algo"])
def test_networks_read_the_base_whatever_is_merged_into_it(stack: nn.Sequential, keywords: dict[str, Any]) -> None:
    plain = stack(ROWS)
    one, other = made(stack, targets=None, algo="loha"), made(stack, targets=None, **keywords)
    one.multiplier, other.multiplier = 0.8, 0.6
    with one, other:
        expected = stack(ROWS)
    assert not torch.allclose(expected, plain)
    one.merge()
    with other:
        torch.testing.assert_close(stack(ROWS), expected, rtol=1e-10, atol=1e-10)
    other.merge()
    torch.testing.assert_close(stack(ROWS), expected, rtol=1e-10, atol=1e-10)
    one.unmerge()
    with one:
        torch.testing.assert_close(stack(ROWS), expected, rtol=1e-10, atol=1e-10)
    other.unmerge()
    assert torch.equal(stack(ROWS), plain)


@pytest.mark.parametrize("keywords", DEPENDENT, ids=lambda keywords: keywords["algo"])
@pytest.mark.parametrize("first_out", [0, 1])
def test_merged_networks_come_out_in_any_order(stack: nn.Sequential, keywords: dict[str, Any], first_out: int) -> None:
    before = copy.deepcopy(stack.state_dict())
    networks = made(stack, targets=None, algo="glora"), made(stack, targets=None, **keywords)
    staying, leaving = networks[1 - first_out], networks[first_out]
    alone = copy.deepcopy(staying.merge() and stack.state_dict())
    staying.unmerge()
    for network in networks:
        network.merge()
    leaving.unmerge()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in stack.state_dict().items())
    staying.unmerge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())
    assert all(not name.startswith("_mixshow") for module in stack.modules() for name in module.__dict__)


@pytest.mark.parametrize("keywords", DEPENDENT, ids=lambda keywords: keywords["algo"])
def test_what_is_made_or_loaded_beside_a_merged_network(stack: nn.Sequential, keywords: dict[str, Any]) -> None:
    def fresh() -> Network:
        settings: dict[str, Any] = {"dim": 2, **keywords}
        return create_network({"unet": stack}, generator=torch.Generator().manual_seed(1), **settings)

    tensors = made(stack, targets=None, **keywords).file_tensors()
    expected, deltas = fresh().file_tensors(), dict(load_network({"unet": stack}, tensors).deltas())
    with_one = made(stack, targets=None, algo="loha").merge()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in fresh().file_tensors().items())
    assert all(torch.equal(delta, deltas[key]) for key, delta in load_network({"unet": stack}, tensors).deltas())
    with_one.unmerge()


def test_a_compiled_model_notices_what_is_merged(stack: nn.Sequential) -> None:
    torch.compiler.reset()
    compiled, plain = torch.compile(stack, backend="eager"), stack(ROWS)
    one = made(stack, targets=None, algo="loha")
    other = made(stack, targets=None, weight_decompose=True, wd_on_out=False)
    with other:
        for change in (lambda: None, one.merge, one.unmerge):
            change()
            torch.testing.assert_close(compiled(ROWS), stack(ROWS), rtol=1e-9, atol=1e-9)
    assert torch.equal(compiled(ROWS), plain)


def test_a_model_converted_while_merged_gets_its_weights_back_converted(stack: nn.Sequential) -> None:
    expected = {name: tensor.bfloat16() for name, tensor in stack.state_dict().items()}
    network = made(stack, targets=None).merge()
    stack.bfloat16()
    network.unmerge()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stack.state_dict().items())


def test_merging_into_16_bits_says_that_it_rounds(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mixshow"):
        logging.getLogger("mixshow").propagate = True
        made(block).merge().unmerge()
        assert "rounded" not in caplog.text
        made(block.bfloat16()).merge().unmerge()
    assert "bfloat16 weights: the sum is rounded" in caplog.text
