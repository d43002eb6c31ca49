"""A concept: one learned subject, as tokens with layer-wise embeddings plus a network, and its file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.core.files import read_safetensors, write_safetensors
from mixshow.edlora.embedding import attach_embeddings
from mixshow.lycoris import Network, load_network
from mixshow.models.base import Base
from mixshow.models.checkpoint import EMBEDDINGS

FORMAT_VERSION = 1
TEXT_WIDTHS, NETWORK_OPTIONS = "text_widths", "network_options"
_EMBEDDING_PREFIXES = (f"{EMBEDDINGS}text_encoder.", f"{EMBEDDINGS}text_encoder_2.")


@dataclasses.dataclass(frozen=True)
class Concept:
    """What training learns of one subject.

    Attributes:
        embeddings: for each concept token `[layers, width]`, in prompt order; for a base with two text encoders theirs
            side by side, and their widths are the metadata's `text_widths`.
        network: tensors of a network file (kohya/LyCORIS keys).
        metadata: `base`, `topology` (fingerprint), `class_word`, `options`, ... plain JSON values; `network_options`:
            see `Network.file_options`.
        source: where it was read from, for messages.
        trigger: words that prompts name it with; empty: its tokens. A network without embeddings needs some.
    """

    embeddings: Mapping[str, Tensor]
    network: Mapping[str, Tensor]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = ""
    trigger: str = ""

    @property
    def text(self) -> str:
        """How prompts name it: `"<pip1> <pip2>"`."""
        return self.trigger or " ".join(self.embeddings)

    @property
    def ordinary_words(self) -> str:
        """Its trigger without its concept tokens."""
        return " ".join(word for word in self.trigger.split() if word not in self.embeddings)


def save_concept(concept: Concept, path: Path | str) -> None:
    """Write a concept file (`.safetensors`)."""
    tensors: dict[str, Tensor] = {}
    for token, vector in concept.embeddings.items():
        parts = vector.split(concept.metadata.get(TEXT_WIDTHS) or vector.shape[1], dim=1)
        tensors |= {prefix + token: part for prefix, part in zip(_EMBEDDING_PREFIXES, parts, strict=False)}
    metadata = {"format": "mixshow.concept", "version": FORMAT_VERSION, "tokens": list(concept.embeddings)}
    write_safetensors(path, {**concept.network, **tensors}, {"mixshow": json.dumps({**metadata, **concept.metadata})})


def load_concept(path: Path | str) -> Concept:
    """Read a concept file (`.safetensors`). `formats.read_concept` reads every format.

    Raises:
        MixshowError: missing, truncated, or no concept file of a version this program knows.
    """
    tensors, metadata = read_safetensors(path)
    if "mixshow" not in metadata:
        raise MixshowError(
            f"{path}: expected a mixshow concept file, found a safetensors file without its metadata; a plain "
            "network belongs under networks"
        )
    about = json.loads(metadata["mixshow"])
    if about.get("format") != "mixshow.concept" or about.get("version", 0) > FORMAT_VERSION:
        raise MixshowError(
            f"{path}: expected a concept file of version {FORMAT_VERSION} or older, found {about.get('format')} "
            f"{about.get('version')}; update mixshow"
        )
    prefixes = _EMBEDDING_PREFIXES[: len(about.get(TEXT_WIDTHS) or [0])]
    missing = [token for token in about["tokens"] if any(prefix + token not in tensors for prefix in prefixes)]
    if missing:
        raise MixshowError(f"{path}: the embeddings of {', '.join(missing)} are missing")
    embeddings = {
        token: torch.cat([tensors.pop(prefix + token) for prefix in prefixes], dim=1) for token in about["tokens"]
    }
    broken = [token for token, vectors in embeddings.items() if not vectors.isfinite().all()]
    if broken:
        raise MixshowError(f"{path}: the embeddings of {', '.join(broken)} hold values that are no numbers")
    return Concept(embeddings, tensors, about, str(path))


def concept_network(base: Base, concept: Concept, strength: float = 1.0) -> Network:
    """A concept's network for a base, frozen and not attached.

    Raises:
        MixshowError: it was trained on a base of other layers or widths.
    """
    network = load_network(base.models, concept.network, options=concept.metadata.get(NETWORK_OPTIONS, {}))
    network.multiplier = strength
    network.num_train_timesteps = base.num_train_timesteps
    return network.requires_grad_(False)


def attach_concepts(
    base: Base, concepts: Sequence[Concept], *, strengths: Sequence[float] | None = None, networks: bool = True
) -> tuple[Base, Attachment]:
    """A base with concepts attached (networks and embeddings), sharing all models with `base`, and the undo handle.

    Args:
        strengths: multiplier of each concept's network (embeddings stay); 1 when not given.
        networks: False attaches the embeddings alone.

    Raises:
        MixshowError: tokens collide, or a concept was trained on a base of other widths. Nothing stays attached then.
    """
    attachment = Attachment()
    try:
        for i, concept in enumerate(concepts):
            try:
                base, embedding = attach_embeddings(base, concept.embeddings)
                attachment.add(embedding.detach)
                if networks:
                    network = concept_network(base, concept, 1.0 if strengths is None else strengths[i])
                    attachment.add(network.attach().detach)
            except MixshowError as error:
                raise MixshowError(f"{concept.source or concept.text}: {error}") from error
    except BaseException:
        attachment.detach()
        raise
    return base, attachment
