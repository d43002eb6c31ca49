"""Passes that wait for each other at chosen modules."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mixshow.fusion.lockstep import lockstep


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@torch.no_grad()
def test_all_wait_at_every_module_and_go_on_with_what_was_put_there(model: nn.Sequential) -> None:
    inputs, results = [torch.randn(2, 3) for _ in range(3)], {}

    def run(number: int) -> None:
        results[number] = model(inputs[number])

    seen: list[tuple[str, list[Tensor]]] = []
    modules = {"first": model[0], "last": model[3]}
    for name, waiting in lockstep(modules, [partial(run, number) for number in range(3)]):
        seen.append((name, [each.input.clone() for each in waiting]))
        assert len(results) == 0  # none goes on before all were here
        for each in waiting:
            each.output = each.output + 1
    assert [name for name, _ in seen] == ["first", "last"]
    for number, x in enumerate(inputs):
        assert torch.equal(seen[0][1][number], x)
        hidden = model[2](torch.relu(model[0](x) + 1))
        torch.testing.assert_close(seen[1][1][number], hidden)
        torch.testing.assert_close(results[number], model[3](hidden) + 1)
    assert hooks(model) == 0


def test_whatever_ends_it_ends_the_passes_and_takes_the_hooks_off(model: nn.Sequential) -> None:
    unwound: list[int] = []

    def run(number: int) -> None:
        try:
            model(torch.ones(1, 3))
        finally:
            unwound.append(number)

    with pytest.raises(ValueError, match="enough"):
        for name, _ in lockstep({"last": model[3]}, [partial(run, number) for number in range(2)]):
            raise ValueError(f"enough of {name}")
    assert sorted(unwound) == [0, 1] and hooks(model) == 0

    def failing(number: int) -> None:
        model(torch.ones(1, 3))
        if number:
            raise RuntimeError("in a pass")

    with pytest.raises(RuntimeError, match="in a pass"):
        list(lockstep({"first": model[0]}, [partial(failing, number) for number in range(2)]))
    assert hooks(model) == 0


def test_no_passes_and_modules_nobody_comes_to(model: nn.Sequential) -> None:
    assert list(lockstep({"first": model[0]}, [])) == []
    other = nn.Linear(1, 1)
    assert list(lockstep({"other": other}, [partial(model, torch.ones(1, 3))])) == []
