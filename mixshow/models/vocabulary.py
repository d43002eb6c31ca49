"""Concept tokens of a tokenizer: one word in a prompt, one tokenizer entry per cross-attention layer (P+).

The file form is Mix-of-Show's `new_concept_cfg.json`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mixshow.core.errors import MixshowError

_CONCEPT_WORD = re.compile(r"<[^<>\s]+>")


@dataclasses.dataclass(frozen=True)
class ConceptVocabulary:
    """Which tokenizer entries stand for each concept token.

    Attributes:
        entries: for each concept token (`"<pip1>"`) its tokenizer entries (`("<new0>", "<new1>", ...)`), one per
            cross-attention layer.
        ids: the same as token ids.
    """

    entries: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    ids: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @property
    def tokens(self) -> tuple[str, ...]:
        """All concept tokens, in the order they were added."""
        return tuple(self.entries)

    @property
    def concepts(self) -> dict[str, str]:
        """How prompts name each concept: `{"pip": "<pip1> <pip2>"}`. Numbers behind a name count its tokens."""
        found: dict[str, list[str]] = {}
        for token in self.entries:
            found.setdefault(concept_name(token), []).append(token)
        return {name: " ".join(tokens) for name, tokens in found.items()}

    def bind(self, prompt: str, layer: int) -> str:
        """The prompt as cross-attention layer number `layer` reads it."""
        return _CONCEPT_WORD.sub(
            lambda match: self.entries[match[0]][layer] if match[0] in self.entries else match[0], prompt
        )

    def used_in(self, prompt: str) -> bool:
        """Whether the prompt names any concept token."""
        return any(word in self.entries for word in _CONCEPT_WORD.findall(prompt))

    def unknown_in(self, prompt: str) -> list[str]:
        """Words of the form `<...>` that are no concept token of this vocabulary."""
        return [word for word in _CONCEPT_WORD.findall(prompt) if word not in self.entries]

    def extended(self, tokens: Iterable[str], layers: int, first_id: int) -> ConceptVocabulary:
        """This vocabulary with more concept tokens, entries numbered on, ids from `first_id` on.

        Raises:
            MixshowError: a token is already there.
        """
        entries, ids = dict(self.entries), dict(self.ids)
        number = sum(len(names) for names in entries.values())
        for token in tokens:
            if token in entries:
                raise MixshowError(
                    f"concept token {token} is used twice; rename one of the concepts' tokens (tokens: in fuse options)"
                )
            entries[token] = tuple(f"<new{number + layer}>" for layer in range(layers))
            ids[token] = tuple(range(first_id, first_id + layers))
            number, first_id = number + layers, first_id + layers
        return ConceptVocabulary(entries, ids)

    def to_config(self) -> dict[str, Any]:
        """The contents of `new_concept_cfg.json`."""
        return {
            token: {"concept_token_ids": list(self.ids[token]), "concept_token_names": list(self.entries[token])}
            for token in self.entries
        }

    @classmethod
    def from_config(cls, config: Any, source: str) -> ConceptVocabulary:
        """Read the contents of `new_concept_cfg.json`.

        Raises:
            MixshowError: not of that form.
        """
        try:
            return cls(
                {str(token): tuple(map(str, entry["concept_token_names"])) for token, entry in config.items()},
                {str(token): tuple(map(int, entry["concept_token_ids"])) for token, entry in config.items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MixshowError(
                f"{source}: expected for every token 'concept_token_ids' and 'concept_token_names', found {error!r}"
            ) from error


def concept_words(text: str) -> list[str]:
    """The words of the form `<...>` in a text, in order."""
    return _CONCEPT_WORD.findall(text)


def concept_name(token: str) -> str:
    """The name of a concept token's concept: `pip` of `<pip1>`."""
    return token.strip("<>").rstrip("0123456789") or token
