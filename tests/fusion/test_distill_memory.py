"""What distilling says beforehand that it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mixshow.config.fuse import FuseOptions
from mixshow.config.refine import RefineOptions
from mixshow.core.errors import MixshowError
from mixshow.fusion.cost import solved_bytes
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.memory import distilling_bytes
from mixshow.fusion.own_and_fused import UNET
from mixshow.fusion.thin import ranks_of
from mixshow.models import Base
from mixshow.recipes import memory
from mixshow.recipes.fuse_memory import check_memory_of_distilling, memory_of_distilling
from tests.tiny import tiny_concept


def options(**refine: object) -> FuseOptions:
    return FuseOptions(base="", concepts=[], output=Path(), refine=RefineOptions(**refine))  # type: ignore[arg-type]


def test_every_weight_counts_with_what_an_optimizer_holds() -> None:
    assert distilling_bytes(1000, 0, factors=False) == 16_000  # value, AdamW's two, gradient or result
    assert distilling_bytes(1000, 10_000, factors=False) == 26_000  # and the pass
    assert distilling_bytes(1000, 10_000, factors=True) == 18_000
    assert distilling_bytes(1000, 10_000, factors=True, copied=True) == 22_000  # what a bf16 base was


def test_predictions_that_are_passed_together_count(tiny: Base) -> None:
    members = [Member(tiny_concept(tiny, "duck"))]
    layers = [layer for stage in UNET for layer in changed_layers(tiny, members, stage)]
    flags = [parameter.requires_grad for parameter in tiny.unet.parameters()]
    four, two, one = (
        memory_of_distilling(tiny, members, options(batch_size=4, accumulation=passes), layers) for passes in (1, 2, 4)
    )
    assert four - two == 2 * (two - one) > 0
    assert memory_of_distilling(tiny, members, options(batch_size=4, accumulation=9), layers) == one
    assert memory_of_distilling(tiny, members, options(batch_size=4, low_rank=True), layers) < four
    assert memory_of_distilling(tiny, members, options(), []) == 0
    assert [parameter.requires_grad for parameter in tiny.unet.parameters()] == flags


def test_wholes_count_where_the_solution_has_no_factors(tiny: Base) -> None:
    members = [Member(tiny_concept(tiny, "duck"))]
    layers = [layer for stage in UNET for layer in changed_layers(tiny, members, stage)]
    solved, averaged = (
        memory_of_distilling(tiny, members, dataclasses.replace(options(), method=method), layers)
        for method in ("solve", "average")
    )
    assert averaged - solved == solved_bytes(layers, {}) - solved_bytes(layers, ranks_of(tiny, members)) > 0


def test_more_memory_than_there_is_is_said_before_with_what_helps(tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    members = [Member(tiny_concept(tiny, "duck"))]
    monkeypatch.setattr(memory, "free_memory", lambda device: (1000, 1000))
    with pytest.raises(MixshowError) as error:
        check_memory_of_distilling(tiny, members, options())
    text = str(error.value)
    assert text.startswith("distilling: needs about") and "\n" not in text
    assert all(each in text for each in ("refine.accumulation, to 8", "refine.low_rank=true", "refine.method=none"))
    with pytest.raises(MixshowError, match=r"free; use refine\.method=none"):
        check_memory_of_distilling(tiny, members, options(accumulation=8, low_rank=True))
    check_memory_of_distilling(tiny, members, options(method="none"))
    assert not torch.is_grad_enabled() or all(p.grad is None for p in tiny.unet.parameters())
