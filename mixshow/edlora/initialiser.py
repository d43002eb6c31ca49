"""First values of concept tokens: `<rand-0.013>+man` for the tokens `<pip1>+<pip2>`."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.seeding import torch_generator
from mixshow.models.base import Base
from mixshow.models.vocabulary import concept_words

_RANDOM = re.compile(r"<rand-(?P<sigma>[^<>]*)>")


def parse_tokens(text: str) -> list[str]:
    """The concept tokens of `<a1>+<a2>` (or `<a1> <a2>`).

    Raises:
        MixshowError: anything else, or a token twice.
    """
    tokens = [part for part in re.split(r"[+\s]+", text.strip()) if part]
    wrong = [token for token in tokens if concept_words(token) != [token]]
    if not tokens or wrong:
        found = f"'{wrong[0]}'" if wrong else "nothing"
        raise MixshowError(f"concept tokens '{text}': expected words like <pip1>+<pip2>, found {found}")
    if len(set(tokens)) < len(tokens):
        raise MixshowError(f"concept tokens '{text}': a token is written twice; give each its own name")
    return tokens


def parse_initialiser(text: str, tokens: list[str]) -> list[float | str]:
    """For each token the standard deviation of a random start, or the word it starts from.

    Raises:
        MixshowError: as many parts as tokens are expected; a random start needs a positive number.
    """
    parts = [part.strip() for part in text.split("+")]
    if len(parts) != len(tokens) or not all(parts):
        raise MixshowError(
            f"initialiser '{text}': expected {len(tokens)} parts joined by '+', one for each of {' '.join(tokens)}, "
            f"found {len([part for part in parts if part])}"
        )
    return [_parse_part(part) for part in parts]


def _parse_part(part: str) -> float | str:
    match = _RANDOM.fullmatch(part)
    if match is None:
        if part.startswith("<"):
            raise MixshowError(f"initialiser '{part}': expected <rand-0.013> or a word")
        return part
    try:
        sigma = float(match["sigma"])
    except ValueError:
        sigma = -1.0
    if not 0 <= sigma < float("inf"):
        raise MixshowError(
            f"initialiser '{part}': expected a standard deviation as in <rand-0.013>, found '{match['sigma']}'"
        )
    return sigma


def initial_vectors(base: Base, tokens: list[str], initialiser: str, *, seed: int = 0) -> dict[str, Tensor]:
    """For each concept token `[layers, width]`; all layers start alike, as published.

    Args:
        initialiser: one part per token, joined by `+`: `<rand-SIGMA>` or a word that is one token of the base.

    Raises:
        MixshowError: see `parse_initialiser`; a word that the base does not know as one token.
    """
    tables = [encoder.get_input_embeddings().weight.detach() for encoder in base.text_encoders.values()]
    vectors = {}
    for token, part in zip(tokens, parse_initialiser(initialiser, tokens), strict=True):
        if isinstance(part, float):
            vector = part * torch.randn(base.topology.text_width, generator=torch_generator(seed, "initialiser", token))
        else:
            number = _word_id(base, part)
            vector = torch.cat([table[number].float().cpu() for table in tables])
        vectors[token] = vector.expand(base.topology.layers, -1).clone()
    return vectors


def _word_id(base: Base, word: str) -> int:
    ids = base.tokenizer(word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise MixshowError(
            f"initialiser '{word}': expected one token of base '{base.source}', it is {len(ids)} tokens; "
            "take a simpler word, or <rand-0.013>"
        )
    if ids[0] == base.tokenizer.unk_token_id:
        raise MixshowError(
            f"initialiser '{word}': base '{base.source}' does not know this word; take another, or <rand-0.013>"
        )
    return int(ids[0])
