"""Concepts from files of every format, told apart by their contents."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import holds_pickle, read_pickled_weights, read_safetensors_metadata
from mixshow.edlora.concept import TEXT_WIDTHS, Concept, load_concept
from mixshow.formats.embeddings import bundled_embeddings, read_embedding
from mixshow.formats.mix_of_show import EMBEDDINGS, parameters_of, read_mix_of_show
from mixshow.lycoris.containers import read_tensors
from mixshow.lycoris.files import MissingAlpha, read_network_file
from mixshow.models import Base
from mixshow.models.vocabulary import concept_words

# Starts of names in models' own files, of both programs.
_OF_MODELS = (
    *("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner."),
    *("conv_in.", "time_embedding.", "text_model.embeddings."),
)
_EMBEDDING_KEYS = {"emb_params", "clip_l", "clip_g", "*"}
_NETWORK = re.compile(r"base_model[.]model[.]|lora|lycoris|hada_|lokr_|oft_|on_input|w_norm|b_norm|[.]diff|:(up|down)$")


def read_concept(path: Path | str) -> Concept:
    """Read a concept: our `.safetensors`, or Mix-of-Show's `.pth`.

    Raises:
        MixshowError: missing, truncated, unsafe, or no concept file.
    """
    path = Path(path)
    if not path.is_file():
        raise MixshowError(f"{path}: no such concept file")
    return read_mix_of_show(path) if holds_pickle(path) else load_concept(path)


def is_concept_file(path: Path | str) -> bool:
    """Whether a file is a concept of this program or of Mix-of-Show, which say all themselves; else a network's.

    Raises:
        MixshowError: missing, truncated or unsafe.
    """
    path = Path(path)
    if path.is_dir():
        return False
    if not path.exists():
        raise MixshowError(f"{path}: no such concept or network file")
    if holds_pickle(path):
        return EMBEDDINGS in parameters_of(read_pickled_weights(path))
    return "mixshow" in read_safetensors_metadata(path)


def read_network_concept(
    path: Path | str, base: Base, *, embedding: Path | str | None = None, missing_alpha: MissingAlpha = "error"
) -> Concept:
    """A network file of any program as a concept for a base, with the tokens of embeddings in it and beside it.

    Args:
        path: a network file, or a folder of PEFT or diffusers with one.
        embedding: a file of textual inversion.
        missing_alpha: see `read_network_file`.

    Raises:
        MixshowError: no network, or one for another base; see `read_embedding`.
    """
    try:
        contents = read_network_file(path, base.models, missing_alpha=missing_alpha)
    except MixshowError as error:
        if found := _something_else(read_tensors(path)[0]):
            raise MixshowError(f"{path}: expected a network file, found {found}") from error
        raise
    network = {f"{name}.{part}": tensor for name, parts in contents.modules.items() for part, tensor in parts.items()}
    if not network:
        raise MixshowError(
            f"{path}: expected a network, found embeddings only; give them as embedding, beside a network"
        )
    embeddings = bundled_embeddings(contents.embeddings, base, str(path))
    if embedding is not None:
        embeddings |= read_embedding(embedding, base)
    widths = {TEXT_WIDTHS: list(base.text_widths)} if len(base.text_widths) > 1 else {}
    return Concept(embeddings, network, {"topology": base.topology.fingerprint(), **widths}, str(path))


def named_by(concept: Concept, trigger: str, base: Base) -> Concept:
    """The concept under words that prompts name it with, its own tokens among them or not.

    Raises:
        MixshowError: no words, or concept tokens that neither it nor the base has.
    """
    name = concept.source or concept.text
    if not trigger.strip():
        raise MixshowError(f"{name}: expected words of its captions as its trigger, found none")
    known = [*concept.embeddings, *base.vocabulary.tokens]
    unknown = [word for word in concept_words(trigger) if word not in known]
    if unknown:
        listed = ", ".join(concept.embeddings) or "none"
        raise MixshowError(
            f"{name}: the trigger names {' '.join(unknown)}, which it has no embedding of; it has: {listed}"
        )
    return dataclasses.replace(concept, trigger=" ".join(trigger.split()))


def _something_else(tensors: Mapping[str, Tensor]) -> str | None:
    """What a file that is no network holds, where that can be told, and what to do."""
    if any(key.startswith(_OF_MODELS) for key in tensors):
        return "a whole model or a part of one; extract a network from it, or give it as base"
    if set(tensors) <= _EMBEDDING_KEYS or all(concept_words(key) == [key] for key in tensors):
        return "an embedding; give it as embedding, beside a network"
    if not any(_NETWORK.search(key) for key in tensors):
        return f"other tensors, such as '{next(iter(tensors), '')}'"
    return None
