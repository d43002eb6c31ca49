"""Textual inversion: files of one vector per token (arXiv 2208.01618), read as layer-wise embeddings of equal layers.

diffusers           {"<cat>": [width] or [vectors, width]}, for a second text encoder in NAME_2 beside it
A1111, .pt          {"string_to_param": {"*": [vectors, width]}, "name": ...}
A1111, safetensors  emb_params, or for XL clip_l and clip_g
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import holds_pickle, read_pickled_weights, read_safetensors
from mixshow.models import Base

_BUNDLE = "bundle_emb."  # of embeddings inside kohya's network files: bundle_emb.<name>.<tensor>[.<key>]
_XL = ("clip_l", "clip_g")  # in the order of the text encoders
_FORMS = "a learned embedding of diffusers ({token: vector}) or of A1111 (string_to_param, emb_params, clip_l, clip_g)"


def read_embedding(path: Path | str, base: Base) -> dict[str, Tensor]:
    """The tokens of an embedding file, for a base.

    Returns:
        For each token `[layers, width]`, two text encoders' side by side. A file of one token with several vectors is
        so many tokens, `<cat1> <cat2>`, as a file of `<cat>` with one is `<cat>`.

    Raises:
        MixshowError: missing, truncated, unsafe, no embedding, or made for another base.
    """
    path = Path(path)
    if not path.is_file():
        raise MixshowError(f"{path}: no such embedding file")
    vectors = _vectors(_contents(path), path)
    second = path.with_name(f"{path.stem}_2{path.suffix}")
    if len(base.text_widths) > 1 and all(len(own) == 1 for own in vectors.values()) and second.is_file():
        beside = _vectors(_contents(second), second)
        if beside.keys() != vectors.keys():
            raise MixshowError(f"{second}: expected the tokens of {path.name}, found {', '.join(beside)}")
        vectors = {name: [*own, *beside[name]] for name, own in vectors.items()}
    return _layerwise(vectors, base, str(path))


def bundled_embeddings(tensors: Mapping[str, Tensor], base: Base, source: str) -> dict[str, Tensor]:
    """The tokens of embeddings that a network file holds, as `read_embedding` has them; maybe none.

    Args:
        tensors: under the names they have in the file, `bundle_emb.<name>.<tensor>`.
        source: for messages.

    Raises:
        MixshowError: made for another base.
    """
    bundles: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(_BUNDLE)}(.+?)\.((?:string_to_param\.)?[^.]+)", key)
        if match is not None:
            bundles.setdefault(match[1], {})[match[2].rpartition(".")[2]] = tensor
    vectors = {name: _sided(own) for name, own in bundles.items()}
    return _layerwise({name: own for name, own in vectors.items() if own}, base, source)


def _contents(path: Path) -> Mapping[str, Any]:
    contents = read_pickled_weights(path) if holds_pickle(path) else read_safetensors(path)[0]
    if not isinstance(contents, Mapping) or not contents:
        raise MixshowError(f"{path}: expected {_FORMS}, found {type(contents).__name__}")
    return contents


def _vectors(contents: Mapping[str, Any], path: Path) -> dict[str, list[Tensor]]:
    """By the token's name, vectors for each text encoder `[vectors, width]`."""
    name = contents.get("name")
    name = name if isinstance(name, str) and name else path.stem
    if isinstance(contents.get("string_to_param"), Mapping):
        return {name: [_matrix(tensor, path) for tensor in list(contents["string_to_param"].values())[:1]]}
    sided = _sided(contents)
    if sided:
        return {name: [_matrix(tensor, path) for tensor in sided]}
    if not all(isinstance(tensor, Tensor) and tensor.dim() in (1, 2) for tensor in contents.values()):
        raise MixshowError(f"{path}: expected {_FORMS}, found {', '.join(str(key) for key in list(contents)[:5])}")
    return {str(token): [_matrix(tensor, path)] for token, tensor in contents.items()}


def _sided(contents: Mapping[str, Any]) -> list[Tensor]:
    """The tensors of A1111's safetensors, one per text encoder; none where it is another form."""
    if "emb_params" in contents:
        return [contents["emb_params"]]
    if set(_XL) <= set(contents):
        return [contents[side] for side in _XL]
    return [contents["*"]] if "*" in contents else []


def _matrix(tensor: Any, path: Path) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.dim() not in (1, 2) or not tensor.is_floating_point():
        raise MixshowError(f"{path}: expected {_FORMS}, found {type(tensor).__name__}")
    return tensor.detach().float().reshape(-1, tensor.shape[-1])


def _layerwise(vectors: Mapping[str, Sequence[Tensor]], base: Base, source: str) -> dict[str, Tensor]:
    """Raises MixshowError where widths are not the base's, or values no numbers."""
    found: dict[str, Tensor] = {}
    for name, sides in vectors.items():
        widths = [side.shape[-1] for side in sides]
        if widths != list(base.text_widths):
            raise MixshowError(
                f"{source}: expected vectors of width {_listed(base.text_widths)} for base '{base.source}', found "
                f"{_listed(widths)} for '{name}'; the embedding was made for another base"
            )
        both = torch.cat([side.float().reshape(-1, side.shape[-1]) for side in sides], dim=1)
        if not both.isfinite().all():
            raise MixshowError(f"{source}: the embedding of '{name}' holds values that are no numbers")
        for token, vector in zip(token_names(name, len(both)), both):
            found[token] = vector.expand(base.topology.layers, -1).clone()
    return found


def token_names(name: str, count: int) -> list[str]:
    """Concept tokens for an embedding of some name and number of vectors: `<cat>`, or `<cat1>`, `<cat2>`, ..."""
    bare = re.sub(r"[<>]", "", name)
    bare = re.sub(r"\s+", "-", bare.strip()) or "token"
    return [f"<{bare}>"] if count == 1 else [f"<{bare}{number}>" for number in range(1, count + 1)]


def _listed(widths: Sequence[int]) -> str:
    return " and ".join(str(width) for width in widths)
