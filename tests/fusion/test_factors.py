"""Factors of a fused change: exact where it has a low rank, and truncated in the metric of the recorded inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixshow.fusion.factors import factorised

OUT, WIDTH = 7, 10


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cost(error: Tensor, metric: Tensor) -> float:
    return float((error @ metric @ error.T).trace())


@pytest.mark.parametrize("shape", [(OUT, WIDTH), (WIDTH, OUT), (40, 3)])
def test_concepts_of_low_rank_fuse_into_the_sum_of_their_ranks(shape: tuple[int, int]) -> None:
    out, width = shape
    directions = random(out, 3, seed=1)
    change = directions @ random(3, width, seed=2)
    factors = factorised(change, directions)
    assert (factors.rank, factors.exact_rank, factors.lost) == (3, 3, 0.0)
    torch.testing.assert_close(factors.up @ factors.down, change)
    assert float(factors.up.norm()) == pytest.approx(float(factors.down.norm()))


@pytest.mark.parametrize("shape", [(OUT, WIDTH), (WIDTH, OUT), (40, 3)])
def test_other_changes_have_the_rank_of_their_shape(shape: tuple[int, int]) -> None:
    change = random(*shape, seed=2)
    for directions in (None, random(shape[0], 2, seed=3), random(shape[0], 60, seed=3)):
        factors = factorised(change, directions)
        assert factors.rank == factors.exact_rank == min(shape) and factors.lost == 0
        torch.testing.assert_close(factors.up @ factors.down, change)


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize("known", [False, True])
def test_truncating_minimises_the_change_of_the_recorded_outputs(rank: int, known: bool) -> None:
    """Against the dense reference: the truncated SVD of `D S^(1/2)`, times `S^(-1/2)`."""
    rows = random(50, WIDTH, seed=1) * torch.logspace(0, -2, WIDTH)
    metric, directions = rows.T @ rows, random(OUT, 6, seed=2)
    change = directions @ random(6, WIDTH, seed=3)
    factors = factorised(change, directions if known else None, metric, rank=rank)
    values, vectors = torch.linalg.eigh(metric)
    root = vectors * values.sqrt() @ vectors.T
    left, singular, right = torch.linalg.svd(change @ root, full_matrices=False)
    expected = left[:, :rank] * singular[:rank] @ right[:rank] @ torch.linalg.inv(root)
    torch.testing.assert_close(factors.up @ factors.down, expected, rtol=1e-6, atol=1e-7)
    assert factors.lost == pytest.approx(cost(change - expected, metric) / cost(change, metric))
    plain = factorised(change, None, None, rank=rank)
    assert cost(change - expected, metric) < cost(change - plain.up @ plain.down, metric)
    assert plain.lost == pytest.approx(float((change - plain.up @ plain.down).square().sum() / change.square().sum()))


def test_energy_takes_the_smallest_rank_that_keeps_it() -> None:
    change, metric = random(OUT, WIDTH, seed=1) * torch.logspace(0, -3, WIDTH), torch.eye(WIDTH, dtype=torch.float64)
    for energy in (0.5, 0.9, 0.999, 1.0):
        factors = factorised(change, None, metric, energy=energy)
        assert factors.lost <= 1 - energy + 1e-12
        if factors.rank > 1:
            assert factorised(change, None, metric, rank=factors.rank - 1).lost > 1 - energy
    assert factorised(change, None, metric, energy=0.999, rank=1).rank == 1
