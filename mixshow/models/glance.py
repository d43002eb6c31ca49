"""What can be known of a base without loading it: from its configurations alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel

from mixshow.core.errors import MixshowError, explained
from mixshow.models.base import not_loaded, place_of, read_vocabulary
from mixshow.models.checkpoint import EMBEDDINGS, tensor_shapes
from mixshow.models.checkpoint_shapes import (
    SD1,
    check_autoencoder,
    family_of,
    naming_what_is_missing,
    unet_config,
    vae_config,
)
from mixshow.models.kinds import kind_problem
from mixshow.models.topology import size_multiple
from mixshow.models.vocabulary import ConceptVocabulary


@dataclasses.dataclass(frozen=True)
class Glance:
    """Some facts about a base.

    Attributes:
        size_multiple: a picture's sides must be multiples of this many pixels; None: it has no autoencoder.
        vocabulary: concept tokens it has.
        unet: configuration of its UNet.
    """

    size_multiple: int | None
    vocabulary: ConceptVocabulary
    unet: Mapping[str, Any]


def glance_at(source: str | Path, *, vae: str | Path | None = None) -> Glance:
    """Look at a base's configurations; of a hub id these are fetched.

    Args:
        source: as for `load_base`.
        vae: as for `load_base`.

    Raises:
        MixshowError: there is no such base, it is of a kind that is not supported, or cannot be read.
    """
    place = place_of(source)
    vocabulary = _tokens_in(place) if Path(place).is_file() else read_vocabulary(place)
    unet = _unet(place, str(source))
    if problem := kind_problem(unet):
        raise MixshowError(f"base '{source}': {problem}")
    autoencoder = _autoencoder(place_of(vae or source), str(vae or source))
    multiple = None
    if autoencoder is not None:
        multiple = size_multiple(len(unet["block_out_channels"]), len(autoencoder["block_out_channels"]))
    return Glance(multiple, vocabulary, unet)


def _tokens_in(file: str) -> ConceptVocabulary:
    """Concept tokens of a single file, by its tensors' names."""
    embedded = [name.removeprefix(EMBEDDINGS) for name in tensor_shapes(Path(file)) if name.startswith(EMBEDDINGS)]
    tokens = dict.fromkeys(name.partition(".")[2] for name in embedded)
    return ConceptVocabulary().extended(tokens, layers=0, first_id=0)


def _unet(place: str, source: str) -> Mapping[str, Any]:
    with explained(not_loaded(source)):
        if not Path(place).is_file():
            shape: Mapping[str, Any] = UNet2DConditionModel.load_config(place, subfolder="unet")
            return shape
        shapes = tensor_shapes(Path(place))
        family = family_of(shapes, source)
        with naming_what_is_missing(source, family):
            return unet_config(shapes, family)


def _autoencoder(place: str, source: str) -> Mapping[str, Any] | None:
    """None: published fused models come without one."""
    with explained(not_loaded(source)):
        if not Path(place).is_file():
            try:
                shape: Mapping[str, Any] = AutoencoderKL.load_config(place, subfolder="vae")
            except OSError:
                return None
            return shape
        shapes = tensor_shapes(Path(place))
        check_autoencoder(shapes, source)
        with naming_what_is_missing(source, SD1):
            return vae_config(shapes, SD1)  # of all families the same, but for the scale of latents
