"""Layer-wise embeddings of concept tokens, attached to a base without touching its embedding table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.models.base import Base
from mixshow.models.tokens import with_entries


class ConceptEmbedding(nn.Module):
    """One vector per concept token and cross-attention layer (P+, arXiv 2303.09522).

    Attached, the text encoders read them for token ids beyond the tokenizer's own; only they carry gradients, so an
    optimizer never sees the base's table.

    Attributes:
        tokens: concept tokens, `("<pip1>", "<pip2>")`.
        vectors: `[tokens, layers, width]`; for a base with two text encoders (XL) theirs side by side.
    """

    def __init__(self, vectors: Mapping[str, Tensor]) -> None:
        """
        Args:
            vectors: for each concept token `[layers, width]`.
        """
        super().__init__()
        self.tokens = tuple(vectors)
        self.vectors = nn.Parameter(torch.stack([vector.float() for vector in vectors.values()]))

    def by_token(self) -> dict[str, Tensor]:
        """For each concept token `[layers, width]`, detached."""
        return {token: self.vectors[i].detach().clone() for i, token in enumerate(self.tokens)}

    def attach(self, base: Base) -> tuple[Base, Attachment]:
        """A base that knows these tokens, sharing all models with `base`, and the handle that undoes it.

        Raises:
            MixshowError: a token collides with one that is there, or the base has other layers or widths.
        """
        _, layers, width = self.vectors.shape
        topology = base.topology
        if (layers, width) != (topology.layers, topology.text_width):
            raise MixshowError(
                f"concept {' '.join(self.tokens)}: expected {topology.layers} vectors of width {topology.text_width} "
                f"per token for base '{base.source}', found {layers} of width {width}; it was trained on another base"
            )
        first, count = len(base.tokenizer), len(self.tokens) * layers
        known = with_entries(base, self.tokens)
        attachment = Attachment()
        start = 0
        for encoder, own in zip(base.text_encoders.values(), base.text_widths):
            self._answer_for(encoder.get_input_embeddings(), first, count, slice(start, start + own), attachment)
            start += own
        return known, attachment

    def _answer_for(self, table: nn.Module, first: int, count: int, part: slice, attachment: Attachment) -> None:
        """Let a table of embeddings give a part of these vectors for `count` ids from `first` on."""
        places: list[Tensor] = []  # row of each id of the running call in `vectors`, negative: not ours

        def hide_own_ids(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            rows = arguments[0] - first
            rows = torch.where(rows < count, rows, -1)
            places[:] = [rows]
            return (torch.where(rows >= 0, 0, arguments[0]), *arguments[1:])

        def insert_own_vectors(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            rows = places.pop()
            own = self.vectors.flatten(0, 1)[:, part].to(output)[rows.clamp(min=0)]
            return torch.where((rows >= 0)[..., None], own, output)

        attachment.add_hook(table.register_forward_pre_hook(hide_own_ids))
        attachment.add_hook(table.register_forward_hook(insert_own_vectors))


def attach_embeddings(base: Base, vectors: Mapping[str, Tensor]) -> tuple[Base, Attachment]:
    """A base that knows concept tokens, as `ConceptEmbedding.attach` makes it; the base itself where there are none."""
    return ConceptEmbedding(vectors).to(base.device).attach(base) if vectors else (base, Attachment())
