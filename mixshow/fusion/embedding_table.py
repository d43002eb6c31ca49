"""Concept tokens made part of a base for good: a longer tokenizer and a longer embedding table."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.models import Base


def with_concept_tokens(base: Base, embeddings: Mapping[str, Tensor]) -> tuple[Base, Attachment]:
    """A base whose tokenizer and embedding table hold the tokens, sharing its models, and the undo handle.

    The tokens' entries and ids go on from those that are there, one per cross-attention layer and token, in order.

    Args:
        embeddings: for each concept token `[layers, width]`.

    Raises:
        MixshowError: a token is there already, or the embeddings are of other layers or widths.
    """
    topology = base.topology
    for token, vectors in embeddings.items():
        if tuple(vectors.shape) != (topology.layers, topology.text_width):
            raise MixshowError(
                f"{token}: expected {topology.layers} vectors of width {topology.text_width}, "
                f"found {list(vectors.shape)}; the concept was trained on another base"
            )
    first = len(base.tokenizer)
    vocabulary = base.vocabulary.extended(embeddings, topology.layers, first)
    entries = [entry for token in embeddings for entry in vocabulary.entries[token]]
    tokenizer = copy.deepcopy(base.tokenizer)
    if tokenizer.add_tokens(entries) != len(entries):
        raise MixshowError(f"base '{base.source}': its tokenizer already holds entries like {entries[0]}")
    encoder = base.text_encoder
    before, size_before = encoder.get_input_embeddings(), encoder.config.vocab_size
    table = nn.Embedding(max(before.num_embeddings, first + len(entries)), topology.text_width).to(before.weight)
    with torch.no_grad():
        table.weight[: before.num_embeddings] = before.weight
        table.weight[first : first + len(entries)] = torch.cat(list(embeddings.values())).to(before.weight)
    table.requires_grad_(False)

    def put_back() -> None:
        encoder.set_input_embeddings(before)
        encoder.config.vocab_size = size_before

    attachment = Attachment(put_back)
    encoder.set_input_embeddings(table)
    encoder.config.vocab_size = table.num_embeddings
    return dataclasses.replace(base, tokenizer=tokenizer, vocabulary=vocabulary), attachment
