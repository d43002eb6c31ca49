"""What can be known of a base without loading it: from its configurations alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel

from mixshow.core.errors import MixshowError, explained
from mixshow.core.files import holds_pickle, read_safetensors_shapes
from mixshow.models.base import not_loaded, place_of, read_vocabulary
from mixshow.models.checkpoint import EMBEDDINGS
from mixshow.models.checkpoint_shapes import family_of, naming_what_is_missing, unet_config, vae_config
from mixshow.models.kinds import kind_problem
from mixshow.models.topology import size_multiple
from mixshow.models.vocabulary import ConceptVocabulary


@dataclasses.dataclass(frozen=True)
class Glance:
    """Some facts about a base.

    Attributes:
        size_multiple: a picture's sides must be multiples of this many pixels; None: only the loaded base tells.
        vocabulary: concept tokens it has.
        unet: configuration of its UNet; None: only the loaded base tells.
    """

    size_multiple: int | None
    vocabulary: ConceptVocabulary
    unet: Mapping[str, Any] | None = None


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
    unet, autoencoder = _configurations(place, str(source))
    if unet is not None and (problem := kind_problem(unet)):
        raise MixshowError(f"base '{source}': {problem}")
    if vae is not None:
        autoencoder = _configurations(place_of(vae), str(vae), unet=False)[1]
    multiple = None
    if unet is not None and autoencoder is not None:
        multiple = size_multiple(len(unet["block_out_channels"]), len(autoencoder["block_out_channels"]))
    return Glance(multiple, vocabulary, unet)


def _tokens_in(file: str) -> ConceptVocabulary:
    """Concept tokens of a single file, by its tensors' names."""
    names = [] if holds_pickle(Path(file)) else read_safetensors_shapes(file)
    embedded = [name.removeprefix(EMBEDDINGS).partition(".")[2] for name in names if name.startswith(EMBEDDINGS)]
    return ConceptVocabulary().extended(dict.fromkeys(embedded), layers=0, first_id=0)


_Configuration = Mapping[str, Any] | None


def _configurations(place: str, source: str, *, unet: bool = True) -> tuple[_Configuration, _Configuration]:
    """Of UNet and autoencoder; None where they are not known."""
    with explained(not_loaded(source)):
        if not Path(place).is_file():
            shape = UNet2DConditionModel.load_config(place, subfolder="unet") if unet else None
            try:
                return shape, AutoencoderKL.load_config(place, subfolder="vae")
            except OSError:  # published fused models come without one
                return shape, None
        if not unet or holds_pickle(Path(place)):
            return None, None
        shapes = read_safetensors_shapes(place)
        family = family_of(shapes, source)
        with naming_what_is_missing(source, family):
            return unet_config(shapes, family), vae_config(shapes, family)
