"""Mix-of-Show's concept files (`edlora_model-latest.pth`), read and written.

A pickle `{"params": {"new_concept_embedding", "text_encoder", "unet"}}` of plain tensors. Its low-rank factors apply
as `W + alpha * up @ down` with an alpha that the file does not hold and that is not divided by the rank.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_pickled_weights, written_atomically
from mixshow.edlora.concept import Concept
from mixshow.lycoris.naming import canonical_path, file_name
from mixshow.models.vocabulary import concept_words

EMBEDDINGS = "new_concept_embedding"
_PARTS = ("text_encoder", "unet")
_FACTORS = ("lora_down.weight", "lora_up.weight")


def read_mix_of_show(path: Path | str, *, unet_alpha: float = 1.0, text_encoder_alpha: float = 1.0) -> Concept:
    """Read a published concept file.

    Args:
        unet_alpha: strength of the UNet's part; `text_encoder_alpha` likewise.

    Raises:
        MixshowError: missing, truncated, unsafe, or of another form.
    """
    contents = parameters_of(read_pickled_weights(path))
    if EMBEDDINGS not in contents:
        raise MixshowError(
            f"{path}: expected a Mix-of-Show concept file with 'new_concept_embedding', found something else"
        )
    embeddings = _embeddings(contents[EMBEDDINGS], path)
    network: dict[str, Tensor] = {}
    for model, alpha in (("text_encoder", text_encoder_alpha), ("unet", unet_alpha)):
        network |= _network(model, contents.get(model) or {}, alpha, path)
    return Concept(embeddings, network, {"algo": "locon", "from": "mix-of-show"}, str(path))


def parameters_of(contents: Any) -> Mapping[str, Any]:
    """What such a file's pickle holds, by `new_concept_embedding`, `text_encoder`, `unet`; empty for other things."""
    if isinstance(contents, Mapping) and "params" in contents:
        contents = contents["params"]
    return contents if isinstance(contents, Mapping) else {}


def write_mix_of_show(concept: Concept, path: Path | str, models: Mapping[str, nn.Module]) -> None:
    """Write a concept in the published form; its scale is folded into the up factors, so that alpha 1 is right.

    Args:
        models: `text_encoder` and `unet` of the concept's base, which spell the modules' paths.

    Raises:
        MixshowError: the concept's network is no low-rank one, or was made for another base; the base has two text
            encoders, which the format does not know; the disk is full.
    """
    if "text_encoder_2" in models:
        raise MixshowError(
            f"{concept.source or concept.text}: the Mix-of-Show format holds one text encoder, XL bases have two"
        )
    contents: dict[str, dict[str, Tensor]] = {
        EMBEDDINGS: {token: vector.float().clone() for token, vector in concept.embeddings.items()}
    }
    tensors = dict(concept.network)
    for model in _PARTS:
        written = contents.setdefault(model, {})
        for module_path, _ in models[model].named_modules():
            name = file_name(model, module_path) if module_path else ""
            if f"{name}.{_FACTORS[0]}" not in tensors or f"{name}.{_FACTORS[1]}" not in tensors:
                continue
            down, up = (tensors.pop(f"{name}.{factor}").float() for factor in _FACTORS)
            alpha = float(tensors.pop(f"{name}.alpha", torch.tensor(float(down.shape[0]))))
            for factor, tensor in zip(_FACTORS, (down, up * (alpha / down.shape[0]))):
                written[f"{canonical_path(model, module_path)}.{factor}"] = tensor.clone()
    if tensors:
        raise MixshowError(
            f"{concept.source or concept.text}: '{next(iter(tensors))}' cannot be written in the Mix-of-Show format, "
            "which holds low-rank factors of the base's own modules only"
        )
    buffer = io.BytesIO()  # torch's own file writer reports a full disk as a programming error
    torch.save({"params": contents}, buffer)
    with written_atomically(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _embeddings(found: Any, path: Path | str) -> dict[str, Tensor]:
    if not isinstance(found, Mapping) or not found:
        raise MixshowError(f"{path}: 'new_concept_embedding' holds no concept tokens")
    for token, vectors in found.items():
        if not isinstance(token, str) or concept_words(token) != [token]:
            raise MixshowError(f"{path}: expected concept tokens like <potter1>, found {token!r}")
        if not isinstance(vectors, Tensor) or vectors.dim() != 2 or not vectors.is_floating_point():
            raise MixshowError(f"{path}: expected for {token} a tensor of layers x width, found {_shape(vectors)}")
        if not vectors.isfinite().all():
            raise MixshowError(f"{path}: the embedding of {token} holds values that are no numbers")
    return {token: vectors.float() for token, vectors in found.items()}


def _network(model: str, found: Any, alpha: float, path: Path | str) -> dict[str, Tensor]:
    if not isinstance(found, Mapping):
        raise MixshowError(f"{path}: expected tensors by name in '{model}', found {type(found).__name__}")
    network: dict[str, Tensor] = {}
    for key, tensor in found.items():
        factor = next((factor for factor in _FACTORS if str(key).endswith(f".{factor}")), None)
        if factor is None or not isinstance(tensor, Tensor):
            raise MixshowError(f"{path}: '{key}' in '{model}' is no low-rank factor (lora_down.weight, lora_up.weight)")
        if tensor.dim() not in (2, 4) or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise MixshowError(f"{path}: '{key}' in '{model}' is no matrix of finite numbers ({_shape(tensor)})")
        name = file_name(model, str(key).removesuffix(f".{factor}"))
        network[f"{name}.{factor}"] = tensor.float()
        if factor == _FACTORS[0]:
            network[f"{name}.alpha"] = torch.tensor(alpha * tensor.shape[0])
    for key in network:
        name = key.partition(".")[0]
        if any(f"{name}.{factor}" not in network for factor in _FACTORS):
            raise MixshowError(f"{path}: '{name}' has only one of its two factors; the file is incomplete")
    return network


def _shape(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
