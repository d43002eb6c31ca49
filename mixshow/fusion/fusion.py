"""What a fusion is once it is made: changes of weights, embeddings of all concepts, and how they were found."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.fusion.layers import layers_of, put_in_place
from mixshow.fusion.solvers import Outcome
from mixshow.models import Base
from mixshow.models.embedding_table import with_concept_tokens


class FormedChanges(Mapping[str, Tensor]):
    """Changes by module path, each formed when it is asked for: all of a large model's would take gigabytes.

    Args:
        parts: of each change, to be multiplied: `up [out, rank]` and `down [rank, in]`, or itself alone.
    """

    def __init__(self, parts: Mapping[str, Sequence[Tensor]]) -> None:
        self.parts = dict(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __contains__(self, path: object) -> bool:
        return path in self.parts  # without forming the change

    def __getitem__(self, path: str) -> Tensor:
        return reduce(torch.matmul, self.parts[path])


def parts_of(changes: Mapping[str, Tensor], path: str) -> Sequence[Tensor]:
    """What a change is the product of."""
    return changes.parts[path] if isinstance(changes, FormedChanges) else [changes[path]]


@dataclasses.dataclass(frozen=True, eq=False)
class Fusion:
    """The fused change of a base.

    Attributes:
        changes: by module path, `[out, in]`; with the bias's change as one more column where it changes.
        embeddings: all concepts' tokens, `[layers, width]` each.
        outcomes: by module path, with residuals in the members' order; empty for baselines.
        seconds: by what they were spent on.
        metrics: S by module path, `[in, in]`, where it was kept; layers that read the same share it.
        refining: how refining went, as plain values for the report; empty where nothing was stopped by.
        directions: by module path, columns `[out, rank]` that span what the layer's change puts out, where these are no
            longer those of the members' changes.
    """

    changes: Mapping[str, Tensor]
    embeddings: Mapping[str, Tensor]
    outcomes: Mapping[str, Outcome] = dataclasses.field(default_factory=dict)
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    refining: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    directions: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def attach(self, base: Base) -> tuple[Base, Attachment]:
        """The fused model, sharing the base's modules until the handle is detached."""
        fused, attachment = with_concept_tokens(base, self.embeddings)
        try:
            modules = {layer.path: layer.module for layer in layers_of(base).values()}
            attachment.add(put_in_place(modules, self.changes).detach)
        except BaseException:
            attachment.detach()
            raise
        return fused, attachment

    @contextlib.contextmanager
    def in_place(self, base: Base) -> Iterator[Base]:
        """The fused model within the block."""
        fused, attachment = self.attach(base)
        with attachment:
            yield fused

    def check_numbers(self) -> None:
        """Look through all changes.

        Raises:
            MixshowError: some are no numbers.
        """
        for path in self.changes:
            if not all(bool(part.isfinite().all()) for part in parts_of(self.changes, path)):
                raise MixshowError(
                    f"'{path}': its fused change holds values that are no numbers; a concept's network is too strong, "
                    "or refining left the ground: lower alpha or refine.rate"
                )
