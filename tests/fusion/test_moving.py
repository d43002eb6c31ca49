"""Weights that move while a fusion is distilled: as wholes, and as factors that keep a change's rank."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from mixshow.fusion.baselines import weight_average
from mixshow.fusion.distill import distill
from mixshow.fusion.factors import Factors, as_low_rank
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.lessons import write_curriculum
from mixshow.fusion.members import Member
from mixshow.fusion.moving import MovingWeights, balanced_directions
from mixshow.models import Base
from tests.fusion.test_distill import PLAN, error_at
from tests.fusion.test_fuse import hooks, state
from tests.tiny import tiny_concept


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=i)) for i, name in enumerate(("duck", "fox"))]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("out", "rank", "width"), [(9, 4, 7), (9, 7, 5), (3, 3, 8)])
def test_balanced_factors_are_the_same_product_and_alike_in_every_direction(out: int, rank: int, width: int) -> None:
    given = Factors(random(out, rank, seed=1) * 100, random(rank, width, seed=2), rank, 0.0)
    up, down = balanced_directions(given)
    torch.testing.assert_close(up @ down, given.up @ given.down)
    torch.testing.assert_close(up.mT @ up, down @ down.mT, atol=1e-8, rtol=1e-8)


def test_directions_that_the_change_does_not_use_can_still_learn() -> None:
    given = Factors(
        random(9, 4, seed=1), torch.diag(torch.tensor([1.0, 1, 0, 0])).double() @ random(4, 7, seed=2), 4, 0.0
    )
    up, down = balanced_directions(given)
    torch.testing.assert_close(up @ down, given.up @ given.down)
    unused = up.norm(dim=0) == 0
    assert unused.sum() == 2 and bool((down[unused].norm(dim=1) > 0).all())
    none = balanced_directions(Factors(torch.zeros(5, 2), torch.zeros(2, 5), 2, 0.0))
    assert not none[0].any() and bool((none[1].norm(dim=1) > 0).all())


def test_gradients_of_factors_are_those_of_autograd(tiny: Base, members: list[Member]) -> None:
    fusion, start = as_low_rank(tiny, members, weight_average(tiny, members))
    moving = MovingWeights(tiny, fusion, start)
    latents = random(1, tiny.unet.config.in_channels, 8, 8, seed=3).float()
    text = random(1, 5, tiny.unet.config.cross_attention_dim, seed=4).float()
    with moving.in_place() as fused:
        fused.unet(latents, 10, text).sample.square().sum().backward()
        path, module = next((p, m) for p, m in fused.unet.named_modules() if p.endswith("attn1.to_q"))
        gradient, weight = module.weight.grad.clone(), module.weight.detach().clone()
        moving.take_gradients()
        factors = [(factor.detach().clone(), factor.grad) for factor in moving.parameters()]
    assert all(parameter.grad is None for parameter in moving.parameters())
    change = fusion.changes[path]
    before = dict(tiny.unet.named_modules())[path].weight.detach()
    torch.testing.assert_close(weight, before + change.float(), atol=1e-6, rtol=1e-5)
    pairs = [
        pair for pair in zip(factors[::2], factors[1::2])
        if len(pair[0][0]) == len(change) and torch.allclose((pair[0][0] @ pair[1][0]).double(), change, atol=1e-6)
    ]  # fmt: skip
    [pair] = pairs
    up, down = (value.requires_grad_(True) for value, _ in pair)
    ((before + up @ down) * gradient).sum().backward()
    for (_, ours), theirs in zip(pair, (up, down)):
        torch.testing.assert_close(ours, theirs.grad)


def test_biases_are_in_place_with_what_moves_and_come_off(tiny: Base, members: list[Member]) -> None:
    plain = weight_average(tiny, members)
    path = next(path for path in plain.changes if path.endswith("attn1.to_out.0"))
    change = torch.cat([plain.changes[path], torch.full((len(plain.changes[path]), 1), 0.5).to(plain.changes[path])], 1)
    fusion = dataclasses.replace(plain, changes={**plain.changes, path: change})
    module = dict(tiny.unet.named_modules())[path]
    weight, bias = module.weight.data, module.bias.data
    moving = MovingWeights(tiny, fusion)
    with moving.in_place():
        torch.testing.assert_close(module.bias.detach(), bias + 0.5)
        torch.testing.assert_close(module.weight.detach(), weight + change[:, :-1].float())
    assert module.weight.data is weight or module.weight.data_ptr() == weight.data_ptr()
    assert module.bias.data_ptr() == bias.data_ptr()
    torch.testing.assert_close(moving.fusion().changes[path], change, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_distilled_factors_come_closer_and_keep_their_rank(tiny: Base, members: list[Member]) -> None:
    start, factors = as_low_rank(tiny, members, weight_average(tiny, members))
    before, hooks_before = state(tiny), hooks(tiny)
    refined = distill(tiny, members, start, PLAN, factors=factors)
    after = state(tiny)
    assert all(torch.equal(after[key], before[key]) for key in before) and hooks(tiny) == hooks_before
    assert all(p.grad is None for p in tiny.unet.parameters())
    for lessons in write_curriculum(tiny, members, PLAN).concepts:
        assert error_at(lessons, tiny, refined) < 0.6 * error_at(lessons, tiny, start)

    moved = [path for path in refined.changes if not torch.equal(refined.changes[path], start.changes[path])]
    stages = {layer.path: layer.stage for layer in layers_of(tiny).values()}
    assert moved == [path for path in refined.changes if stages[path] is not Stage.TEXT] and len(moved) > 10
    for path in moved:
        values = torch.linalg.svdvals(refined.changes[path].double())
        assert int((values > 1e-6 * values[0]).sum()) <= factors[path].rank < min(refined.changes[path].shape)
    exact, found = as_low_rank(tiny, members, refined)  # a file holds all of it
    for path in moved:
        assert found[path].rank == factors[path].rank and found[path].lost == 0
        torch.testing.assert_close(exact.changes[path], refined.changes[path].double(), atol=1e-6, rtol=1e-5)


def test_layers_without_factors_move_as_wholes(tiny: Base, members: list[Member]) -> None:
    start, factors = as_low_rank(tiny, members, weight_average(tiny, members))
    path = next(path for path in factors if path.endswith("attn1.to_q"))
    own = {name: each for name, each in factors.items() if name != path}
    refined = distill(tiny, members, start, dataclasses.replace(PLAN, steps=3), factors=own)
    assert not torch.equal(refined.changes[path], start.changes[path])
    values = torch.linalg.svdvals(refined.changes[path].double())
    assert int((values > 1e-6 * values[0]).sum()) > factors[path].rank
