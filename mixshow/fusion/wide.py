"""Rows of layer inputs, where their second moment would be larger: unfolded inputs of 3x3 convolutions, say.

A moment has the square of the input's width; some thousand rows have less than that for wide inputs. Where more rows
flow through a layer than are kept, a uniform sample stays: every row draws a key, from counters, and the smallest keys
stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from mixshow.core.seeding import torch_generator


@dataclasses.dataclass(frozen=True, eq=False)
class KeptRows:
    """Inputs of one layer, as a sample of their rows.

    Attributes:
        kept: `[kept, in]`, float32; `in` counts the constant 1 where there is one.
        rows: number of rows that flowed through the layer.
        resolution: eigenvalues of the moment below this share of the largest are rounding noise.
    """

    kept: Tensor
    rows: int
    resolution: float

    @property
    def width(self) -> int:
        """Width of the input."""
        return self.kept.shape[1]

    @property
    def shape(self) -> torch.Size:
        """Of the moment."""
        return torch.Size((self.width, self.width))

    @property
    def factor(self) -> Tensor:
        """F, `[kept, in]`, float64, with `F^T F` the moment of one row."""
        return self.kept.double() / max(len(self.kept), 1) ** 0.5

    @property
    def mean(self) -> Tensor:
        """The moment of one row, formed: `[in, in]`, float64."""
        factor = self.factor
        return factor.mT @ factor

    @property
    def moment(self) -> Tensor:
        """The moment of all rows, formed: `[in, in]`, float64."""
        return self.rows * self.mean


@dataclasses.dataclass(frozen=True)
class RowSampling:
    """Of which inputs rows are kept instead of the moment.

    Attributes:
        width: inputs wider than this, with the constant 1 where there is one.
        limit: rows that are kept.
        seed: of the sample.
    """

    width: int
    limit: int
    seed: int = 0

    def samplers(self, widths: Mapping[str, int]) -> dict[str, Reservoir]:
        """One for each layer with wide inputs, by name; of all layers the widths are given."""
        return {name: Reservoir(self.limit, self.seed, name) for name, width in widths.items() if width > self.width}


class Reservoir:
    """Keeps a uniform sample of the rows it is given, all of them while there are few.

    Args:
        limit: most rows kept.
        seed: of the sample.
        name: of the layer, so that layers draw numbers of their own.
    """

    def __init__(self, limit: int, seed: int, name: str) -> None:
        self._limit, self._seed, self._name = limit, seed, name
        self._kept: Tensor | None = None
        self._keys = torch.empty(0, dtype=torch.float64)
        self.rows = 0

    def put(self, rows: Tensor) -> None:
        """Take rows `[rows, in]` into account."""
        keys = torch.rand(
            len(rows), generator=torch_generator(self._seed, "rows", self._name, self.rows), dtype=torch.float64
        )
        self.rows += len(rows)
        room = self._limit - len(self._keys)
        if room > 0:
            first = rows[:room].float()
            self._kept = first.clone() if self._kept is None else torch.cat([self._kept, first])
            self._keys = torch.cat([self._keys, keys[:room]])
            rows, keys = rows[room:], keys[room:]
        if len(rows):
            self._replace(rows, keys)

    def _replace(self, rows: Tensor, keys: Tensor) -> None:
        assert self._kept is not None
        staying = torch.zeros(self._limit + len(keys), dtype=torch.bool)
        staying[torch.cat([self._keys, keys]).topk(self._limit, largest=False).indices] = True
        leaving, coming = (~staying[: self._limit]).nonzero()[:, 0], staying[self._limit :].nonzero()[:, 0]
        place = self._kept.device
        self._kept[leaving.to(place)] = rows[coming.to(place)].float()
        self._keys[leaving] = keys[coming]

    def statistics(self, resolution: float) -> KeptRows:
        """What was kept; see `KeptRows.resolution`."""
        assert self._kept is not None
        return KeptRows(self._kept, self.rows, resolution)
