"""Numbers too small for full precision are 0 while a command runs, and as before afterwards."""

from __future__ import annotations

import pytest
import torch

from mixshow.cli import puppets
from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.core.errors import MixshowError
from mixshow.core.subnormals import subnormals_flushed


def small() -> float:
    return float(torch.tensor([1e-30]) * torch.tensor([1e-10]))


def test_they_are_flushed_within_the_block_alone() -> None:
    assert small() > 0
    with pytest.raises(ValueError, match="stop"), subnormals_flushed():
        with subnormals_flushed():
            assert small() == 0
        assert small() == 0  # as before the inner block
        raise ValueError("stop")
    assert small() > 0


def test_commands_run_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(_: object) -> None:
        seen.append(small())
        raise MixshowError("enough")

    monkeypatch.setattr(puppets, "run", run)
    assert main(["puppets", "cast"]) == EXIT_USER_ERROR
    assert seen == [0.0] and small() > 0
