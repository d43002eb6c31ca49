"""From prompts to text states, one set per cross-attention layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mixshow.models.base import Base


def prompt_ids(base: Base, texts: Sequence[str], *, pad: bool = True) -> Tensor:
    """Token ids of texts that are already bound to a layer.

    Args:
        pad: to the model's full length; without, all texts must have equally many tokens.

    Returns:
        `[texts, tokens]` on the text encoder's device; longer prompts are cut at the model's length.
    """
    batch = base.tokenizer(
        list(texts),
        padding="max_length" if pad else False,
        truncation=True,
        max_length=base.topology.max_tokens,
        return_tensors="pt",
    )
    return batch.input_ids.to(base.text_encoder.device)


def encode_prompts(base: Base, prompts: Sequence[str], *, chunk: int | None = None) -> Tensor:
    """Text states for every prompt and cross-attention layer.

    A prompt without concept tokens is the same for all layers and is encoded once.

    Args:
        prompts: texts, concept tokens written as the vocabulary knows them (`<pip1> <pip2>`).
        chunk: texts encoded at a time; None: all at once.

    Returns:
        `[prompts, layers, tokens, width]`
    """
    layers = base.topology.layers
    texts: dict[str, int] = {}
    rows = []  # for each prompt and layer, the row of its text among the distinct ones
    for prompt in prompts:
        bound = range(layers) if base.vocabulary.used_in(prompt) else [0] * layers
        rows.append([texts.setdefault(base.vocabulary.bind(prompt, layer), len(texts)) for layer in bound])
    distinct = list(texts)
    chunk = chunk or len(distinct)
    states = torch.cat(
        [
            base.text_encoder(prompt_ids(base, distinct[start : start + chunk]))[0]
            for start in range(0, len(distinct), chunk)
        ]
    )
    return states[torch.tensor(rows, device=states.device)]
