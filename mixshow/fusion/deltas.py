"""The concepts' changes of one layer, as a problem wants them: one matrix each, formed when it is used.

All changes of all concepts of a large model at once would take as much memory as the concepts' models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import overload

import torch.nn.functional as F
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.fusion.members import Changes
from mixshow.fusion.moments import device_of
from mixshow.fusion.statistics import LayerInputs

Deltas = Mapping[str, Tensor]  # by module path, in the shape of the weight


class FormedMatrices(Sequence["Tensor | None"]):
    """Matrices of one layer, one per concept, each formed when it is asked for; None: the concept leaves it alone."""

    def formed(self, place: int) -> Tensor | None:
        """One of them."""
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> Tensor | None: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Tensor | None]: ...
    def __getitem__(self, place: int | slice) -> Tensor | Sequence[Tensor | None] | None:
        if isinstance(place, slice):
            return [self.formed(each) for each in range(*place.indices(len(self)))]
        return self.formed(place)


class Matrices(FormedMatrices):
    """D_i of one layer, `[out, in]` each, of a normalisation `[channels, 1, in]`; None: the concept leaves it alone.

    Args:
        concepts: each one's changes.
        inputs: of the layer, which tell their number and place.

    Raises:
        MixshowError: a change has more columns than the moment.
    """

    def __init__(self, name: str, concepts: Sequence[Deltas], inputs: LayerInputs) -> None:
        self._name, self._concepts = name, concepts
        self._width, self._dim, self._device = inputs.shape[-1], len(inputs.shape), device_of(inputs)
        for each in concepts:
            if name in each and _columns(each, name) > self._width:
                raise MixshowError(
                    f"'{name}': a concept changes more than its statistics are of ({_columns(each, name)} columns, "
                    f"with the bias, against {self._width}); record the statistics again"
                )

    def __len__(self) -> int:
        return len(self._concepts)

    def formed(self, place: int) -> Tensor | None:
        delta = self._concepts[place].get(self._name)
        if delta is None:
            return None
        matrix = widened(delta, self._width).to(self._device)
        return matrix if self._dim == 2 else matrix.unsqueeze(-2)

    def factors(self) -> list[tuple[Tensor, Tensor] | None] | None:
        """`(up [out, r], down [r, in])` of each concept that changes the layer; None where one has no low rank."""
        found: list[tuple[Tensor, Tensor] | None] = []
        for each in self._concepts:
            if self._name not in each:
                found.append(None)
                continue
            factors = each.factors(self._name) if isinstance(each, Changes) else None
            if factors is None:
                return None
            up, down = factors
            found.append((up.to(self._device), widened(down, self._width).to(self._device)))
        return found


def widened(change: Tensor, width: int) -> Tensor:
    """A change as a matrix `[out, width]`; what it has no column for, a bias, it leaves alone."""
    matrix = change.flatten(1)
    return F.pad(matrix, (0, width - matrix.shape[1]))


def _columns(changes: Deltas, name: str) -> int:
    return changes.columns(name) if isinstance(changes, Changes) else changes[name].flatten(1).shape[1]
