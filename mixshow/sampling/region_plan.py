"""The texts of a scene and where each of them is attended to; see `regional_attention`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from mixshow.models import Base, PromptReading, PromptStates, read_prompts
from mixshow.models.prompt_reading import aligned, read_ids
from mixshow.sampling.guard import TokenGuard
from mixshow.sampling.regions import Area, Edges, Region, averaged_shares, region_shares
from mixshow.sampling.routing import Routing

Made = TypeVar("Made")
_AS_WRITTEN = PromptReading()


class RegionPlan:
    """The texts of a scene and the weight each has at every position, for any resolution of the UNet."""

    def __init__(
        self,
        regions: Sequence[Region],
        prompt: str,
        negative_prompt: str,
        *,
        size: tuple[int, int],
        edges: Edges = Edges.HARD,
        base_prompt: str | None = None,
        schedule: Sequence[tuple[float, float]] = (),
        marks: Sequence[Hashable] = (),
    ) -> None:
        """
        Args:
            prompt: for what no region covers.
            size: (width, height) of the picture in pixels.
            base_prompt: for the regions' base ratios; None: the prompt.
            schedule: see `Scene`.
            marks: for each region what its text is encoded under, see `encode`; equal texts under different marks are
                kept apart. None, and no marks at all: the base alone.
        """
        self.regions, self.size, self.edges = tuple(regions), size, edges
        marks = marks or [None] * len(regions)
        background = (prompt, negative_prompt, None)
        base = (prompt if base_prompt is None else base_prompt, negative_prompt, None)
        own = [(region.prompt, region.negative_prompt, mark) for region, mark in zip(regions, marks)]
        texts = list(dict.fromkeys([background, base, *own]))
        self.texts = [text[:2] for text in texts]  # (prompt, negative prompt), the background's first
        self.marks = [text[2] for text in texts]
        self.base_text = texts.index(base)
        self.text_of = [texts.index(text) for text in own]  # of each region
        self._schedule = sorted(schedule)
        self.strengths = (1.0,) * len(regions)  # of regions' own prompts at the step that is computed
        self._made: dict[Hashable, object] = {}
        self._maps: dict[tuple[int, int], Tensor] = {}  # soft shares of pixels and of each resolution's positions

    def begin_step(self, step: int, steps: int) -> None:
        """Weigh the texts as at step `step` of `steps`; before the first call all regions act."""
        factor = next((factor for start, factor in reversed(self._schedule) if start * steps <= step), 1.0)
        self.strengths = tuple(
            factor if region.span[0] * steps <= step < region.span[1] * steps else 0.0 for region in self.regions
        )

    def encode(
        self,
        base: Base,
        *,
        guided: bool,
        reading: PromptReading = _AS_WRITTEN,
        under: Callable[[Hashable], AbstractContextManager[object]] = lambda _: nullcontext(),
    ) -> PromptStates:
        """States of `[halves, texts]`; negative prompts in the first half, if guided.

        Args:
            under: gives what is to be entered while the texts with a mark are encoded.
        """
        halves = [[negative for _, negative in self.texts]] if guided else []
        halves.append([prompt for prompt, _ in self.texts])
        order: list[int] = []
        parts: list[PromptStates] = []
        for mark in dict.fromkeys(self.marks):
            chosen = [i for i, own in enumerate(self.marks) if own == mark]
            with under(mark):
                parts.append(read_prompts(base, [half[i] for half in halves for i in chosen], reading))
            order += [half * len(self.texts) + i for half in range(len(halves)) for i in chosen]
        states = PromptStates.joined(aligned(parts))[torch.tensor(order).argsort()] if len(parts) > 1 else parts[0]
        return states.unflattened(len(halves), len(self.texts))

    def guard(self, base: Base, ids: Tensor | None = None) -> TokenGuard:
        """What keeps the regions' concept tokens to their regions.

        Args:
            ids: see `ids`; None: of prompts as they are written.
        """
        common = (0, self.base_text)
        own = [None if text in common else text for text in self.text_of]
        return TokenGuard.of(base.vocabulary, self.ids(base) if ids is None else ids, self.regions, own)

    def ids(self, base: Base, reading: PromptReading = _AS_WRITTEN, tokens: int | None = None) -> Tensor:
        """Token ids of the prompts (not the negative ones) as the first layer reads them, `[texts, tokens]`.

        Args:
            reading: what they were encoded with.
            tokens: of the states they were encoded to; None: what these prompts alone have.
        """
        ids = read_ids(base, [prompt for prompt, _ in self.texts], reading)
        return ids if tokens is None else ids.repeat(1, tokens // ids.shape[1])

    def weights(self, rows: int, columns: int) -> Tensor:
        """The weight of each text at each position at this step, `[texts, rows, columns]` in float64; sums to one."""
        background, *shares = self.shares(rows, columns)
        weights = torch.zeros(len(self.texts), rows, columns, dtype=torch.float64)
        weights[0] = background
        for text, own, share in zip(self.text_of, self.own_parts, shares):
            weights[text] += share * own
            weights[self.base_text] += share * (1 - own)
        return weights

    @property
    def own_parts(self) -> tuple[float, ...]:
        """The part of each region that follows its own prompt at this step; the base prompt has the rest."""
        return tuple(strength * (1 - region.base_ratio) for strength, region in zip(self.strengths, self.regions))

    def shares(self, rows: int, columns: int) -> Tensor:
        """The share each region has of each position; see `region_shares`."""
        if self.edges is Edges.HARD or not self.regions:
            return region_shares(self.regions, rows, columns, self.size, self.edges)
        if (rows, columns) not in self._maps:
            pixels = (self.size[1], self.size[0])
            if not self._maps:
                self._maps[pixels] = region_shares(self.regions, *pixels, self.size, self.edges)
            finer = [shares for grid, shares in self._maps.items() if not (grid[0] % rows or grid[1] % columns)]
            source = min(finer, key=Tensor.numel, default=self._maps[pixels])
            self._maps[rows, columns] = averaged_shares(source, rows, columns)
        return self._maps[rows, columns]

    def routing(self, positions: int, device: torch.device) -> Routing:
        """The routing of the layers that have so many positions, at this step."""
        return self.once(
            ("routing", positions, device, self.strengths),
            lambda: Routing.of(self.weights(*self.grid(positions)).flatten(1)).to(device),
        )

    def grid(self, positions: int) -> tuple[int, int]:
        """Rows and columns of a layer that has so many positions."""
        width, height = self.size
        rows = round(math.sqrt(positions * height / width))
        return rows, positions // rows

    def place(self, areas: Mapping[int, Area]) -> None:
        """Give regions, by their numbers, other areas."""
        self.regions = tuple(
            dataclasses.replace(region, area=areas.get(number, region.area))
            for number, region in enumerate(self.regions)
        )
        self._maps.clear()
        self._made.clear()

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, kept for as long as the regions stay where they are; the key must name all it reads."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[return-value]
