"""Networks beside other networks, hooks, copies, processes and other programs."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.lycoris.small import Block, X, made


def test_a_forward_of_the_instance_is_called_and_comes_back(block: Block) -> None:
    plain = block.linear.forward
    block.linear.forward = lambda x: plain(x) + 1.0  # type: ignore[method-assign]
    own, network = block.linear.forward, made(block)
    for adapter in network.adapters.values():
        adapter.prefers_weight = lambda *_: True  # type: ignore[method-assign]
    before = block(X)
    with network:
        changed = block(X)
    assert block.linear.forward is own
    network.merge()
    torch.testing.assert_close(changed, block(X), rtol=1e-12, atol=1e-12)
    network.unmerge()
    assert torch.equal(block(X), before)


def test_hooks_see_the_changed_output(block: Block) -> None:
    network, seen = made(block), []
    with block.linear.register_forward_hook(lambda _, __, output: seen.append(output)), network:
        output = block(X)
    assert torch.equal(seen[0], output)


def test_networks_come_off_in_any_order(block: Block) -> None:
    one, other, base = made(block), made(block, algo="loha"), block(X)
    one.attach()
    with other:
        both = block(X)
        one.detach()
        alone = block(X)
    with one:
        torch.testing.assert_close(both.shape, block(X).shape)
    assert not torch.equal(both, alone)
    assert torch.equal(block(X), base)
    assert all("forward" not in module.__dict__ for module in block.modules())


def test_a_copied_model_keeps_its_networks(block: Block) -> None:
    with made(block) as network:
        copied = copy.deepcopy(block)
        expected = block(X)
    torch.testing.assert_close(copied(X), expected, rtol=0, atol=0)
    copied.linear.weight.data += 1.0  # its own weights, not the original's
    assert not torch.equal(copied(X), expected)
    assert not network.attached


def test_gradients_are_shared_between_processes(block: Block, tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.network = block, made(block)

        def forward(self, x: Tensor) -> Tensor:
            with self.network:
                return self.block(x)

    plain = Both()
    plain(X).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in plain.network.parameters() if parameter.grad is not None]
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        plain.zero_grad()
        DistributedDataParallel(plain)(X).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, gradient in zip(plain.network.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient)


def test_max_norm_bounds_every_delta(block: Block) -> None:
    network = made(block)
    norms = {name: float(delta.detach().norm()) for name, delta in network.deltas()}
    limit = sorted(norms.values())[1]
    shrunk, mean, largest = network.scale_norms(limit)
    assert shrunk >= 1
    assert largest == pytest.approx(limit)
    after = [float(delta.detach().norm()) for _, delta in network.deltas()]
    assert mean == pytest.approx(sum(after) / len(after))
    assert max(after) <= limit * (1 + 1e-6)


def test_parameters_by_model(block: Block) -> None:
    network = made(block)
    assert len(network.parameters_of("lora_unet")) == len(list(network.parameters()))
    assert network.parameters_of("lora_te") == []


def test_what_other_programs_leave_behind_costs_nothing(block: Block) -> None:
    block.linear.forward = block.linear.forward  # type: ignore[method-assign]  # the class's method, as theirs restore it
    network, calls = made(block), []
    for adapter in network.adapters.values():
        whole = adapter.forward_whole
        adapter.prefers_weight = lambda *_: True  # type: ignore[method-assign]
        adapter.forward_whole = lambda *given, whole=whole: calls.append(given[1]) or whole(*given)  # type: ignore
    with network:
        block(X)
    assert block.linear in calls
