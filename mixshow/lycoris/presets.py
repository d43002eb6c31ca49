"""Presets: which modules get a network, and with which algorithm; eight by name, others from YAML or LyCORIS's TOML."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from torch import nn

from mixshow.core.errors import MixshowError, OptionsError, did_you_mean
from mixshow.core.progress import log
from mixshow.lycoris.targets import Options, Preset, Target, select

__all__ = ["PRESETS", "Preset", "Target", "load_preset", "select_targets"]

_TEXT = ("CLIPAttention", "CLIPMLP")
_TRANSFORMER = ("Transformer2DModel",)
_CONVOLUTIONAL = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
_ENDS = ("conv_in", "conv_out")
_TIME = ("time_embedding.linear_1", "time_embedding.linear_2")
_ATTENTION = ("Attention", "MultiheadAttention")
_LAYERS = ("Linear", "Conv1d", "Conv2d", "Conv3d")


def _unet(name: str, classes: tuple[str, ...], names: tuple[str, ...] = (), *, conv: bool) -> Preset:
    return Preset(name, conv, classes, names, target_module=classes, target_name=names)


_ON_INPUT: Options = MappingProxyType({"train_on_input": True})
_BUILT_IN = (
    Preset("full", True, (*_TRANSFORMER, *_CONVOLUTIONAL), (*_ENDS, *_TIME), _TEXT, target_module=_LAYERS),
    Preset("full-lin", False, (*_TRANSFORMER, "ResnetBlock2D"), _TIME, _TEXT, target_module=_LAYERS),
    Preset("attn-mlp", False, _TRANSFORMER, (), _TEXT, target_module=(*_TRANSFORMER, *_TEXT)),
    Preset("attn-only", False, _ATTENTION, (), ("CLIPAttention",), target_module=(*_ATTENTION, "CLIPAttention")),
    _unet("unet-only", (*_TRANSFORMER, *_CONVOLUTIONAL), (*_ENDS, *_TIME), conv=True),
    _unet("unet-transformer-only", _TRANSFORMER, conv=False),
    _unet("unet-convblock-only", _CONVOLUTIONAL, _ENDS, conv=True),
    Preset(
        "ia3",
        False,
        unet_target_name=("*.to_k", "*.to_v", "*.ff.net.2"),
        text_encoder_target_name=("*.k_proj", "*.v_proj", "*.mlp.fc2"),
        name_algo_map=MappingProxyType({"*.ff.net.2": _ON_INPUT, "*.mlp.fc2": _ON_INPUT}),
        target_name=("*.to_k", "*.to_v", "*.k_proj", "*.v_proj"),
        use_fnmatch=True,
    ),
)
PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _BUILT_IN})


def select_targets(
    models: Mapping[str, nn.Module], preset: Preset | str | Path | Mapping[str, Any], *, train_norm: bool = False
) -> list[Target]:
    """The modules that a preset selects, in the models' order.

    Args:
        models: by the names `unet`, `text_encoder`, `text_encoder_2`, or any other.
        preset: as in `load_preset`.
        train_norm: take the layer and group normalisations inside the selected classes too, with the algorithm `norm`.

    Raises:
        MixshowError: no such preset; or it matches nothing in a model that it has classes or names for.
    """
    preset = load_preset(preset)
    used: set[str] = set()
    targets = select(models, preset, train_norm=train_norm, used=used)
    if preset.name not in PRESETS and (unmatched := [text for text in _expected(models, preset) if text not in used]):
        log.warning(f"preset '{preset.name}': nothing in {', '.join(models)} fits {', '.join(unmatched)}")
    return targets


def _expected(models: Mapping[str, nn.Module], preset: Preset) -> dict[str, None]:
    """What a person wrote to fit something; lists of target classes often name other programs' too."""
    names = [text for model in models for text in preset.names(model)]
    return dict.fromkeys((*names, *preset.exclude_name, *preset.module_algo_map, *preset.name_algo_map))


def load_preset(source: str | Path | Mapping[str, Any] | Preset) -> Preset:
    """A preset by name, from a YAML or TOML file, or from such a file's contents.

    Raises:
        MixshowError: no preset of that name and no such file; or it cannot be read.
        OptionsError: unknown keys, values of other kinds: all of them together.
    """
    if isinstance(source, Preset):
        return source
    if isinstance(source, Mapping):
        return _preset(source, "preset")
    if str(source) in PRESETS:
        return PRESETS[str(source)]
    path = Path(source).expanduser()
    if path.suffix.lower() not in (".toml", ".yml", ".yaml", ".json"):
        raise MixshowError(f"preset '{source}': unknown, and no .toml or .yml file{did_you_mean(str(source), PRESETS)}")
    try:
        text = path.read_text(encoding="utf-8")
        contents = tomllib.loads(text) if path.suffix.lower() == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise MixshowError(f"preset {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        first_line = " ".join(str(error).split())
        raise MixshowError(f"preset {path}: not valid {path.suffix[1:].upper()}: {first_line}") from error
    if not isinstance(contents, Mapping):
        raise MixshowError(f"preset {path}: expected a mapping of options, found {type(contents).__name__}")
    return _preset(contents, str(path))


# LyCORIS's key for a prefix of its own; names here follow from the models.
_WITHOUT_MEANING = ("lora_prefix",)


def _preset(contents: Mapping[str, Any], source: str) -> Preset:
    kinds = {field.name: field.type for field in dataclasses.fields(Preset)}
    values: dict[str, Any] = {"name": source}
    problems: list[str] = []
    for key, value in contents.items():
        if key in _WITHOUT_MEANING:
            continue
        if key not in kinds:
            problems.append(f"{key}: no option of a preset{did_you_mean(str(key), kinds)}")
        elif key == "name":
            values[key] = str(value)
        elif kinds[key] == "bool":
            values[key] = truth(value)
            if values[key] is None:
                problems.append(f"{key}: expected true or false, found {value!r}")
        elif str(kinds[key]).startswith("tuple"):
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                problems.append(f"{key}: expected a list of texts, found {value!r}")
            else:
                values[key] = tuple(value)
        elif not isinstance(value, Mapping) or not all(isinstance(item, Mapping) for item in value.values()):
            problems.append(f"{key}: expected for each class or name a mapping of options, found {value!r}")
        else:
            values[key] = {str(target): _algorithm_options(options) for target, options in value.items()}
    if problems:
        raise OptionsError(source, problems)
    return Preset(**values)


def truth(value: Any) -> bool | None:
    """What YAML, TOML and their quoted words say about yes and no; None: nothing."""
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return words.get(str(value).strip().lower())


# What presets made for LyCORIS call options that have another name here.
_RENAMED = {"wd_on_output": "wd_on_out", "dora_wd": "weight_decompose"}


def _algorithm_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names algorithms use, quoted truth values taken as such."""
    quoted = {"true": True, "false": False}
    return {
        _RENAMED.get(key, key): quoted.get(value.lower(), value) if isinstance(value, str) else value
        for key, value in options.items()
    }
