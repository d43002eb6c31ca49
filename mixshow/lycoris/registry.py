"""All algorithms, by the name options use and by the tensor that tells them in a file."""

from __future__ import annotations

from collections.abc import Iterable

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.lycoris.algorithm import Algorithm
from mixshow.lycoris.locon import LoCon

ALGORITHMS: dict[str, type[Algorithm]] = {algorithm.name: algorithm for algorithm in (LoCon,)}


def algorithm_named(name: str) -> type[Algorithm]:
    """Raises MixshowError when there is no such algorithm."""
    if name not in ALGORITHMS:
        raise MixshowError(f"algorithm '{name}': unknown{did_you_mean(name, ALGORITHMS)}")
    return ALGORITHMS[name]


def algorithm_of(tensor_names: Iterable[str]) -> type[Algorithm] | None:
    """The algorithm that wrote these tensors of one module."""
    names = set(tensor_names)
    return next((algorithm for algorithm in ALGORITHMS.values() if algorithm.detects in names), None)
