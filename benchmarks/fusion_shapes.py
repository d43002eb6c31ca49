"""The layers of a fusion at Stable Diffusion 1.5's size, and changes of low rank for them; for other benchmarks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from mixshow.fusion.members import Changes

Factors = tuple[Tensor, Tensor]  # [out, rank], [rank, width]
RANK = 4


@dataclasses.dataclass(frozen=True)
class Shape:
    """Layers alike.

    Attributes:
        rows: recorded, per concept.
        shared: layers that read the same input.
        count: inputs of this kind in the model.
        iterations: of the published procedure.
        text: rows come from the text encoder, whose products are taken in float64.
    """

    name: str
    width: int
    out: int
    rows: int
    shared: int
    count: int
    iterations: int
    text: bool = False

    @property
    def layers(self) -> int:
        return self.shared * self.count

    @property
    def alike(self) -> tuple[int, int, int]:
        """What the published procedure's time depends on."""
        return self.width, self.out, self.rows


def sd15_shapes() -> list[Shape]:
    """All attention projections; text encoder of 12 layers, 16 blocks of attention, rows as published."""
    text = [
        Shape("text encoder q, k, v", 768, 768, 176, 3, 12, 500, text=True),
        Shape("text encoder out", 768, 768, 176, 1, 12, 500, text=True),
    ]
    states = [
        Shape(f"keys and values {out}", 768, out, 6, 2, count, 500, text=True)
        for out, count in ((320, 5), (640, 5), (1280, 6))
    ]
    spatial = []
    for width, side, blocks in ((320, 64, 5), (640, 32, 5), (1280, 16, 5), (1280, 8, 1)):
        rows, name = 20 * side * side, f"{width} at {side}x{side}"
        spatial.append(Shape(f"self-attention q, k, v {name}", width, width, rows, 3, blocks, 50))
        # Queries of cross-attention and both output projections.
        spatial.append(Shape(f"single projections {name}", width, width, rows, 1, 3 * blocks, 50))
    return [*text, *states, *spatial]


def toy_shapes() -> list[Shape]:
    """Something small of each kind, to see whether it runs."""
    return [
        Shape("text encoder q, k, v", 24, 24, 30, 3, 2, 20, text=True),
        Shape("text encoder out", 24, 24, 30, 1, 2, 20, text=True),
        Shape("keys and values", 24, 16, 6, 2, 3, 20, text=True),
        Shape("self-attention q, k, v", 16, 16, 400, 3, 3, 10),
        Shape("single projections", 16, 16, 400, 1, 9, 10),
    ]


def factors(out: int, width: int, generator: torch.Generator) -> Factors:
    """Of a change of low rank, a tenth of the norm that `recorded` gives weights."""
    up, down = torch.randn(out, RANK, generator=generator), torch.randn(RANK, width, generator=generator)
    return up * (0.1 / (RANK * width) ** 0.5), down


class LowRank(Changes):
    """Changes known by their factors, formed when they are used, as a concept's network's are."""

    def __init__(self, pairs: Mapping[str, Factors]) -> None:
        super().__init__({})
        self._pairs = dict(pairs)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, path: str) -> Tensor:
        up, down = self._pairs[path]
        return up @ down

    def only(self, paths: Iterable[str]) -> LowRank:
        return LowRank({path: self._pairs[path] for path in paths if path in self._pairs})

    def columns(self, path: str) -> int:
        return self._pairs[path][1].shape[1]

    def factors(self, path: str) -> Factors:
        return self._pairs[path]
