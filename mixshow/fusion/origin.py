"""What statistics are of: which base, which concept at which strengths, which prompts, sizes and seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from mixshow.edlora.concept import Concept
from mixshow.fusion.collect import Collection
from mixshow.fusion.members import Member
from mixshow.models import Base
from mixshow.models.identity import weights_hash
from mixshow.sampling.generate import latent_size

_LONG = 60  # characters of a value that a message shows


@dataclasses.dataclass(frozen=True)
class Origin:
    """All that decides statistics but the layers they are of and how many rows of wide inputs are kept.

    Attributes:
        base: hash of its weights.
        base_source: where it was loaded from, for messages.
        concept: hash of its vectors and network; None: the base itself on ordinary captions.
        tokens: of the concept, in prompt order, for people; they may be renamed.
        text_encoder: strength of the network on the text encoder.
        unet: strength of the network on the UNet.
        text_prompts: with `{concept}` in them; captions where there is no concept.
        picture_prompts: the same, of pictures.
        every_position: see `Collection`.
        steps: denoising steps.
        width: pixels.
        height: pixels.
        seed: of the start noise.
        row_weights: `sensitivity` where inputs count by what the prediction depends on, see `Collection.sensitive`.
    """

    base: str
    base_source: str
    concept: str | None
    tokens: tuple[str, ...]
    text_encoder: float
    unet: float
    text_prompts: tuple[str, ...]
    picture_prompts: tuple[str, ...]
    every_position: bool
    steps: int
    width: int
    height: int
    seed: int
    row_weights: str = "equal"  # as in files from before there was another choice

    def differences(self, wanted: Origin) -> list[str]:
        """Why these are not the wanted statistics, one sentence each; empty where they are."""
        told = {"base_source", "tokens"}
        found = []
        for field in dataclasses.fields(self):
            own, other = getattr(self, field.name), getattr(wanted, field.name)
            if own == other or field.name in told:
                continue
            if field.name == "base":
                found.append(f"recorded on another base ('{self.base_source}', {own}; expected {other})")
            elif field.name == "concept":
                found.append(_of_another_concept(self, wanted))
            else:
                found.append(f"recorded with {_WORDS.get(field.name, field.name)} {_short(own)}, not {_short(other)}")
        return found

    def key(self) -> str:
        """A short hash of all that decides the numbers."""
        decisive = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("base_source", "tokens")}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> Self:
        """Raises KeyError where something is missing."""
        values: dict[str, Any] = {
            field.name: about.get(field.name, field.default)
            if field.default is not dataclasses.MISSING
            else about[field.name]
            for field in dataclasses.fields(cls)
        }
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**values)


_WORDS = {"text_encoder": "strength on the text encoder", "unet": "strength on the UNet"}


def _of_another_concept(found: Origin, wanted: Origin) -> str:
    own = f"of the concept {' '.join(found.tokens)}" if found.concept else "of the base on ordinary captions"
    other = f"of {' '.join(wanted.tokens)}" if wanted.concept else "of the base on ordinary captions"
    again = ", trained anew since" if found.tokens == wanted.tokens and wanted.concept and found.concept else ""
    return f"{own}{again}, not {other}"


def _short(value: Any) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."


class Origins:
    """Origins of statistics of one base, under one collection.

    Args:
        captions: ordinary ones, for the base's own.
    """

    def __init__(self, base: Base, collection: Collection, captions: Sequence[str]) -> None:
        height, width = latent_size(base, collection.width, collection.height)
        factor = base.topology.latent_factor
        self._captions = tuple(captions)
        self._common: dict[str, Any] = {
            "base": weights_hash(base),
            "base_source": base.source,
            "every_position": collection.every_position,
            "steps": collection.steps,
            "width": width * factor,
            "height": height * factor,
            "seed": collection.seed,
            "row_weights": "sensitivity" if collection.sensitive else "equal",
        }
        self._templates = tuple(collection.text_prompts), tuple(collection.picture_prompts)

    def of(self, member: Member | None) -> Origin:
        """Of a concept's statistics; None: of the base's on ordinary captions."""
        if member is None:
            return Origin(
                concept=None, tokens=(), text_encoder=1.0, unet=1.0,
                text_prompts=self._captions, picture_prompts=self._captions, **self._common,
            )  # fmt: skip
        text, pictures = self._templates
        return Origin(
            concept=concept_hash(member.concept), tokens=tuple(member.concept.text.split()),
            text_encoder=member.alpha * member.text_encoder, unet=member.alpha * member.unet,
            text_prompts=text, picture_prompts=pictures, **self._common,
        )  # fmt: skip


def concept_hash(concept: Concept) -> str:
    """A short hash of a concept's vectors, in prompt order, its network, and the words that name it beside its tokens.

    The tokens' own names take no part.
    """
    places = {token: str(number) for number, token in enumerate(concept.embeddings)}
    digest = hashlib.sha256(" ".join(places.get(word, word) for word in concept.text.split()).encode())
    named = [("", vectors) for vectors in concept.embeddings.values()]
    for name, tensor in [*named, *sorted(concept.network.items())]:
        values = tensor.detach().float().cpu().contiguous()
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
