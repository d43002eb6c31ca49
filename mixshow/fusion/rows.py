"""Inputs kept as they are: a uniform sample of each layer's rows, for objectives that second moments do not tell.

Every row has a pseudo-random priority that is a function of its number alone (splitmix64, Steele et al. 2014), and the
lowest are kept: the same rows on every machine and however rows come in batches, and layers that read the same keep
the same ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.seeding import derived_seed
from mixshow.fusion.statistics import input_rows, is_elementwise

Rows = dict[str, Tensor]  # by module path, `[rows, in]`

# splitmix64's constants as signed 64-bit numbers, which is what torch has.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))


def priorities(first: int, count: int, seed: int) -> Tensor:
    """Priorities of rows `first` to `first + count`, `[count]`, int64."""
    mixed = torch.arange(first + 1, first + count + 1) * _STEP + derived_seed(seed, "rows")
    for shift, factor in _MIX:
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return mixed ^ _shifted(mixed, 31)


def _shifted(numbers: Tensor, places: int) -> Tensor:
    """To the right, filled with zeros."""
    return (numbers >> places) & ((1 << (64 - places)) - 1)


class RowSample:
    """At most `limit` of the rows that were added.

    Example:
        >>> sample = RowSample(limit=2, seed=0)
        >>> for batch in torch.arange(12.0).reshape(3, 2, 2):
        ...     sample.add(batch)
        >>> sample.rows.shape
        torch.Size([2, 2])
    """

    def __init__(self, limit: int, seed: int = 0) -> None:
        self._limit, self._seed = limit, seed
        self._seen = 0
        self._rows: Tensor | None = None
        self._keys = torch.zeros(0, dtype=torch.int64)

    def add(self, rows: Tensor) -> None:
        """Rows `[rows, in]`, which are copied where they are kept."""
        keys = priorities(self._seen, len(rows), self._seed)
        self._seen += len(rows)
        if len(self._keys) == self._limit:  # what cannot be kept need not be looked at
            low = keys < self._keys[-1]
            keys, rows = keys[low], rows[low.to(rows.device)]
        all_keys = torch.cat([self._keys, keys])
        all_rows = rows if self._rows is None else torch.cat([self._rows, rows])
        order = all_keys.argsort()[: self._limit]
        self._keys, self._rows = all_keys[order], all_rows[order.to(all_rows.device)]

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def rows(self) -> Tensor:
        """What was kept, `[rows, in]`."""
        assert self._rows is not None, "no rows were added"
        return self._rows


class RowSampler:
    """Samples the inputs of chosen modules while the block runs; takes its hooks off again, also after an error.

    Normalisations, whose channels are problems of their own, are left out.

    Args:
        modules: by canonical path.
        limit: rows kept of each; 0: nothing is sampled.
        extended: paths of modules whose inputs are extended by a constant 1.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], limit: int, *, extended: Collection[str] = (), seed: int = 0
    ) -> None:
        self._modules = {path: module for path, module in modules.items() if limit and not is_elementwise(module)}
        self._samples = {path: RowSample(limit, seed) for path in self._modules}
        self._extended = frozenset(extended)
        self._attachment = Attachment()

    def __enter__(self) -> Self:
        for path, module in self._modules.items():
            self._attachment.add_hook(module.register_forward_pre_hook(self._hook(path)))
        return self

    def __exit__(self, *_: object) -> None:
        self._attachment.detach()

    def _hook(self, path: str):  # type: ignore[no-untyped-def]
        @torch.no_grad()
        def sample(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            rows = input_rows(module, arguments[0].detach().float())
            self._samples[path].add(F.pad(rows, (0, 1), value=1.0) if path in self._extended else rows)

        return sample

    def rows(self) -> Rows:
        """What was kept, by path of the modules that ran."""
        return {path: sample.rows for path, sample in self._samples.items() if len(sample)}
