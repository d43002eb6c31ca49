"""Streams are functions of their counters, and nothing else."""

from __future__ import annotations

import torch

from mixshow.core.seeding import derived_seed, numpy_generator, torch_generator
from mixshow.core.stopwatch import Stopwatch, machine, peak_memory_gb


def test_streams_repeat_and_differ() -> None:
    assert derived_seed(0, "noise", 3) == derived_seed(0, "noise", 3)
    assert len({derived_seed(s, w, k) for s in (0, 1) for w in ("noise", "time") for k in range(50)}) == 200
    a, b = (torch.randn(4, generator=torch_generator(1, "x", 2)) for _ in range(2))
    assert torch.equal(a, b)
    assert numpy_generator(1, "x").integers(100) == numpy_generator(1, "x").integers(100)


def test_counters_do_not_run_together() -> None:
    assert derived_seed(0, 1, 23) != derived_seed(0, 12, 3)


def test_a_stopwatch_adds_up_and_the_machine_is_described() -> None:
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("a"):
            pass
    assert list(watch.seconds) == ["a"] and watch.total >= watch.seconds["a"]
    assert peak_memory_gb() > 0 and machine()["cores"] >= 1
