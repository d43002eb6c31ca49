"""What network files come in: safetensors, pickles of plain tensors, folders of diffusers and PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import Metadata, holds_pickle, read_json, read_pickled_weights, read_safetensors
from mixshow.lycoris import cloneofsimo
from mixshow.lycoris.naming import TEXT_ENCODERS
from mixshow.lycoris.peft_names import CONFIG

_PEFT_CONFIG, _PEFT_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_DIFFUSERS_WEIGHTS = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_MODELS = ("unet", *TEXT_ENCODERS)


def read_tensors(place: Path | str) -> tuple[dict[str, Tensor], Metadata]:
    """The tensors of a network file, or of a folder that holds one, with the metadata.

    Of a folder of PEFT adapters for several models (`unet`, `text_encoder`) their tensors are joined, under the models'
    names. PEFT's configurations are metadata.

    Raises:
        MixshowError: missing, truncated, unsafe, or no file of tensors.
    """
    place = Path(place)
    if place.is_dir():
        return _of_folder(place)
    if not place.is_file():
        raise MixshowError(f"{place}: no such file")
    if not holds_pickle(place):
        tensors, metadata = read_safetensors(place)
    else:
        tensors, metadata = _of_pickle(place), {}
    if place.name in _PEFT_WEIGHTS and (config := place.with_name(_PEFT_CONFIG)).is_file():
        metadata = {**metadata, CONFIG: json.dumps(read_json(config))}
    return tensors, metadata


def _of_folder(folder: Path) -> tuple[dict[str, Tensor], Metadata]:
    file = _first_file(folder, (*_PEFT_WEIGHTS, *_DIFFUSERS_WEIGHTS))
    if file is not None:
        return read_tensors(file)
    parts = {model: file for model in _MODELS if (file := _first_file(folder / model, _PEFT_WEIGHTS)) is not None}
    if not parts:
        raise MixshowError(
            f"{folder}: expected a network file, or a folder with {_PEFT_WEIGHTS[0]} or {_DIFFUSERS_WEIGHTS[0]}, found "
            "a folder with neither"
        )
    tensors: dict[str, Tensor] = {}
    metadata: Metadata = {}
    for model, file in parts.items():
        own, about = read_tensors(file)
        tensors |= {f"{model}.{key}": tensor for key, tensor in own.items()}
        metadata |= {f"{model}.{key}": value for key, value in about.items()}
    return tensors, metadata


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _of_pickle(path: Path) -> dict[str, Tensor]:
    contents: Any = read_pickled_weights(path)
    if cloneofsimo.is_list(contents):
        return cloneofsimo.numbered(path, contents)
    while isinstance(contents, Mapping) and len(contents) == 1 and isinstance(next(iter(contents.values())), Mapping):
        contents = next(iter(contents.values()))  # `state_dict` and the like
    if not isinstance(contents, Mapping) or not contents or not all(map(_is_entry, contents.items())):
        raise MixshowError(
            f"{path}: expected a network's tensors by name, found {_described(contents)}; a textual inversion is none"
        )
    return {str(key): tensor for key, tensor in contents.items()}


def _is_entry(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def _described(contents: Any) -> str:
    if isinstance(contents, Mapping):
        return f"entries {', '.join(str(key) for key in list(contents)[:5])}" if contents else "nothing"
    return f"a {type(contents).__name__}"
