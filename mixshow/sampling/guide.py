"""What guides the UNet beside text: residuals that adapters and ControlNets add, summed, and weighed by place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, Protocol

from torch import Tensor

from mixshow.models import PromptStates
from mixshow.sampling.averaging import averaged


@dataclasses.dataclass(frozen=True, eq=False)
class UNetInput:
    """What the UNet is about to read.

    Attributes:
        latents: `[batch, channels, height, width]`, as the scheduler scales them.
        timestep: of all of them.
        text: the states they are read with.
        step: number of the denoising step, from 0.
        steps: how many there are.
        guided: whether the first half of the batch is the negative one.
    """

    latents: Tensor
    timestep: Tensor
    text: PromptStates
    step: int
    steps: int
    guided: bool = False

    def within(self, span: tuple[float, float]) -> bool:
        """Whether the step lies in a part of them, from 0.0 (first) to 1.0 (last)."""
        return span[0] * self.steps <= self.step < span[1] * self.steps


class Guide(Protocol):
    """Something that adds to the UNet's hidden values."""

    def for_unet(self, given: UNetInput) -> dict[str, Any]:
        """The UNet's keywords at a step; empty when nothing is added."""
        ...


class Together:
    """Several guides: what they add is summed, block by block."""

    def __init__(self, guides: Sequence[Guide]) -> None:
        self.guides = tuple(guides)

    def for_unet(self, given: UNetInput) -> dict[str, Any]:
        """See `Guide`."""
        found: dict[str, Any] = {}
        for guide in self.guides:
            for name, value in guide.for_unet(given).items():
                found[name] = _sum(found[name], value) if name in found else value
        return found


def _sum(first: Any, second: Any) -> Any:
    if isinstance(first, Tensor):
        return first + second
    # Some adapters have features for more blocks than others.
    return [a if b is None else b if a is None else a + b for a, b in zip_longest(first, second)]


class WeightMap:
    """A factor for every position, at any resolution."""

    def __init__(self, values: Tensor) -> None:
        """
        Args:
            values: of the positions of a grid, `[rows, columns]`.
        """
        self.values = values
        self._maps: dict[tuple[int, int], Tensor] = {}

    def at(self, like: Tensor) -> Tensor:
        """The factors of a tensor's positions, `[height, width]`, in its type and on its device."""
        grid = (like.shape[-2], like.shape[-1])
        if grid not in self._maps:
            self._maps[grid] = averaged(self.values, *grid).to(like)
        return self._maps[grid]


Weight = float | WeightMap


def weighed(residual: Tensor, weight: Weight) -> Tensor:
    """A residual `[batch, channels, height, width]` times a weight."""
    return residual * (weight.at(residual) if isinstance(weight, WeightMap) else weight)


def place_weight(weight: float, shares: Tensor, own: Sequence[float | None], mask: Tensor | None = None) -> Weight:
    """One weight, or a map of it where regions have factors of their own or a mask bounds it.

    Args:
        weight: everywhere.
        shares: that the background and each region have of the positions, `[1 + regions, rows, columns]`.
        own: each region's factor on the weight; None: 1.
        mask: how much of it counts at each position, `[rows, columns]`.
    """
    if mask is None and all(factor in (None, 1) for factor in own):
        return weight
    values = shares[0] + sum(share * (1.0 if factor is None else factor) for share, factor in zip(shares[1:], own))
    return WeightMap(weight * (values if mask is None else values * mask))
