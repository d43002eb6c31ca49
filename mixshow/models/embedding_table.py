"""Concept tokens made part of a base for good: a longer tokenizer and a longer embedding table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.models.tokens import with_entries

if TYPE_CHECKING:
    from mixshow.models.base import Base


def with_concept_tokens(base: Base, embeddings: Mapping[str, Tensor]) -> tuple[Base, Attachment]:
    """A base whose tokenizers and embedding tables hold the tokens, sharing its models, and the undo handle.

    The tokens' entries and ids go on from those that are there, one per cross-attention layer and token, in order.

    Args:
        embeddings: for each concept token `[layers, width]`; for two text encoders theirs side by side. With none the
            base stays as it is.

    Raises:
        MixshowError: a token is there already, or the embeddings are of other layers or widths.
    """
    if not embeddings:
        return base, Attachment()
    topology = base.topology
    for token, vectors in embeddings.items():
        if tuple(vectors.shape) != (topology.layers, topology.text_width):
            raise MixshowError(
                f"{token}: expected {topology.layers} vectors of width {topology.text_width}, "
                f"found {list(vectors.shape)}; the concept was trained on another base"
            )
    known = with_entries(base, embeddings)
    rows = torch.cat(list(embeddings.values()))
    attachment = Attachment()
    for encoder, own in zip(base.text_encoders.values(), rows.split(base.text_widths, dim=1)):
        _lengthen(encoder, len(base.tokenizer), own, attachment)
    return known, attachment


def _lengthen(encoder: PreTrainedModel, first: int, rows: Tensor, attachment: Attachment) -> None:
    """Give a text encoder rows of embeddings from id `first` on, until the handle is detached."""
    before, size_before = encoder.get_input_embeddings(), encoder.config.vocab_size
    assert isinstance(before, nn.Embedding)
    table = nn.Embedding(max(before.num_embeddings, first + len(rows)), rows.shape[1]).to(before.weight)
    with torch.no_grad():
        table.weight[: before.num_embeddings] = before.weight
        table.weight[first : first + len(rows)] = rows.to(before.weight)
    table.requires_grad_(False)

    def put_back() -> None:
        encoder.set_input_embeddings(before)
        encoder.config.vocab_size = size_before

    attachment.add(put_back)
    encoder.set_input_embeddings(table)
    encoder.config.vocab_size = table.num_embeddings
