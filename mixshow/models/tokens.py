"""Concept tokens as entries of a base's tokenizers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mixshow.core.errors import MixshowError

if TYPE_CHECKING:
    from mixshow.models.base import Base


def with_entries(base: Base, tokens: Iterable[str]) -> Base:
    """A base whose tokenizers hold one entry per concept token and cross-attention layer, sharing all models.

    Their ids go on from the tokenizers' own, in order; the embedding tables have no rows for them yet.

    Raises:
        MixshowError: a token or an entry is there already.
    """
    vocabulary = base.vocabulary.extended(tokens, base.topology.layers, len(base.tokenizer))
    entries = [
        entry for token, names in vocabulary.entries.items() if token not in base.vocabulary.entries for entry in names
    ]
    tokenizers = {name: copy.deepcopy(tokenizer) for name, tokenizer in base.tokenizers.items()}
    for tokenizer in tokenizers.values():
        if tokenizer.add_tokens(entries) != len(entries):
            raise MixshowError(f"base '{base.source}': its tokenizer already holds entries like {entries[0]}")
    return dataclasses.replace(
        base,
        tokenizer=tokenizers["text_encoder"],
        tokenizer_2=tokenizers.get("text_encoder_2"),
        vocabulary=vocabulary,
    )
