"""Network files under the models' own dotted paths: diffusers' (`unet.<path>.lora_A.weight`) and PEFT's adapters.

PEFT writes `base_model.model.<path>.` for the one model it was given and keeps the scale in `adapter_config.json`.
diffusers puts the model's name in front and has written factors under four spellings since 2023.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.lycoris.naming import NameIndex

CONFIG = "adapter_config"  # PEFT's configuration as JSON in the metadata; of several models `<model>.adapter_config`
_DIFFUSERS_CONFIG = "lora_adapter_metadata"  # the same in diffusers' files, which need not have it
_PEFT = "base_model.model."
_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
_KINDS = ("LORA", "LOHA", "LOKR")  # of PEFT's adapters, those that mean the same here
_FACTORS = {"A": "lora_down.weight", "B": "lora_up.weight", "down": "lora_down.weight", "up": "lora_up.weight"}
_WITH_RANKS = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")  # along their first axis
_CLIP = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_TELLING = (
    re.compile(r"(?P<path>.+)\.lora_(?P<factor>[AB])(\.(?!weight$)\w+)?\.weight"),
    re.compile(r"(?P<path>.+\..+)\.lora(_linear_layer)?\.(?P<factor>down|up)\.weight"),
    re.compile(r"(?P<path>.+\..+)\.(?P<part>to_[qkv]|to_out)_lora\.(?P<factor>down|up)\.weight"),
    re.compile(r"(?P<path>.+\..+)\.(?P<same>hada_[wt][12](_[ab])?|lokr_(w[12](_[ab])?|t2))"),
)
_BESIDE = (
    re.compile(r"(?P<path>.+)\.(?P<dora>lora_magnitude_vector)(\.\w+)*"),
    re.compile(r"(?P<path>.+\..+)\.(?P<same>alpha)"),
)


@dataclasses.dataclass(frozen=True)
class _Key:
    """A tensor's name, read.

    Attributes:
        model: that it names; None: none.
        path: of the module.
        part: the tensor's name in other files.
        peft: it is of PEFT's own files, whose scale only the configuration tells.
    """

    model: str | None
    path: str
    part: str
    peft: bool


def recognises(tensors: Collection[str]) -> bool:
    """Whether keys are such a file's."""
    return any(_PEFT in key or any(pattern.fullmatch(key) for pattern in _TELLING) for key in tensors)


def named(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], index: NameIndex) -> dict[str, Tensor]:
    """The tensors under the names of other network files, with an alpha where the file or its form tells one.

    Raises:
        MixshowError: an adapter of PEFT that means something else here; paths that no one model has.
    """
    read = {key: own for key in tensors if (own := _read(key)) is not None}
    nameless = [each.path for each in read.values() if each.model is None]
    model = _model_of(nameless, index) if nameless else ""
    scales = _scales(metadata)
    modules: dict[tuple[str, str], dict[str, Tensor]] = {}
    peft: dict[tuple[str, str], bool] = {}
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key in read:
            place = (read[key].model or model, read[key].path)
            modules.setdefault(place, {})[read[key].part] = tensor
            peft[place] = read[key].peft
        else:
            found[key.replace(".", "_")] = tensor  # left to the reader's own message
    for (own_model, path), parts in modules.items():
        name = f"{_PREFIXES[own_model]}_{path.replace('.', '_')}"
        config = scales.get(own_model) or scales.get("")
        scaled = _scaled(parts, config, path, scale_of_one=not peft[own_model, path])
        found |= {f"{name}.{part}": tensor for part, tensor in scaled.items()}
    return found


def _read(key: str) -> _Key | None:
    match = next((match for match in (pattern.fullmatch(key) for pattern in (*_TELLING, *_BESIDE)) if match), None)
    if match is None:
        return None
    groups, path = match.groupdict(), match["path"]
    head, _, rest = path.partition(".")
    model = head if head in _PREFIXES else None
    peft = _PEFT in f"{path}."
    path = (rest if model else path).removeprefix(_PEFT).removesuffix(".processor")
    if groups.get("part"):
        text = "self_attn" in path
        path += f".{_CLIP[groups['part']]}" if text else f".{groups['part'].replace('to_out', 'to_out.0')}"
        model = model or "unet"  # diffusers' first files held nothing else
    if model is None and not peft and path.partition(".")[0] in ("down_blocks", "mid_block", "up_blocks"):
        model = "unet"
    part = "dora_scale" if groups.get("dora") else groups.get("same") or _FACTORS[match["factor"]]
    return _Key(model, path, part, peft)


def _model_of(paths: Collection[str], index: NameIndex) -> str:
    """The one model that has all modules of an adapter that does not name it."""
    bodies = [path.replace(".", "_") for path in paths]
    fitting = [
        model
        for model, prefix in _PREFIXES.items()
        if all(index.find(f"{prefix}_{body}") is not None for body in bodies)
    ]
    if len(fitting) > 1:
        raise MixshowError(
            f"the adapter fits {' and '.join(fitting)}; put its folder into one of that name, and give that folder's "
            "parent"
        )
    return fitting[0] if fitting else "unet"  # the reader names the modules that are not there


def _scales(metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """PEFT's configurations by model; under an empty name of a model that is not named."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, value in metadata.items():
        model, _, name = key.rpartition(".")
        if name == CONFIG:
            found[model] = _configuration(value)
    told = _configuration(metadata.get(_DIFFUSERS_CONFIG, "{}"))
    for key, value in told.items():
        model, _, name = key.partition(".")
        own = found.setdefault(model if name and model in _PREFIXES else "", {})
        assert isinstance(own, dict)
        own[name if name and model in _PREFIXES else key] = value
    for config in found.values():
        kind = str(config.get("peft_type", "LORA")).rpartition(".")[2]
        if kind not in _KINDS:
            raise MixshowError(
                f"expected a PEFT adapter of {', '.join(_KINDS)}, found {kind}, whose tensors mean something else "
                "here; merge it into a model and extract a LoRA"
            )
    return found


def _configuration(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _scaled(
    parts: Mapping[str, Tensor], config: Mapping[str, Any] | None, path: str, *, scale_of_one: bool
) -> dict[str, Tensor]:
    """A module's tensors with their alpha.

    Args:
        scale_of_one: that is what the file means where nothing tells an alpha; otherwise there is none then.
    """
    parts = dict(parts)
    rank = next(
        (parts[part].shape[0] for part in ("lora_down.weight", "hada_w1_b", "lokr_w2_b") if part in parts), None
    )
    if "dora_scale" in parts:  # PEFT keeps a vector: one magnitude per output
        out = parts["lora_up.weight"].dim() - 1 if "lora_up.weight" in parts else 1
        parts["dora_scale"] = parts["dora_scale"].reshape(-1, *[1] * out)
    if "alpha" in parts:
        return parts
    if config is None or not {"lora_alpha", "alpha"} & set(config):
        return parts if not scale_of_one or rank is None else {"alpha": torch.tensor(float(rank)), **parts}
    usual = config.get("lora_alpha", config.get("alpha"))
    alpha = float(_by_pattern(config.get("alpha_pattern"), path, usual))
    if rank is None:  # LoKr of whole factors, which has no scale here
        ratio = alpha / float(_by_pattern(config.get("rank_pattern"), path, config.get("r", alpha)))
        return {**parts, "lokr_w1": parts["lokr_w1"] * ratio} if "lokr_w1" in parts else parts
    return {"alpha": torch.tensor(alpha * math.sqrt(rank) if config.get("use_rslora") else alpha), **parts}


def _by_pattern(patterns: Mapping[str, Any] | None, path: str, usual: Any) -> Any:
    """The value of the first pattern that ends a path, as PEFT looks it up."""
    return next(_matching(patterns or {}, path), usual)


def _matching(patterns: Mapping[str, Any], path: str) -> Iterator[Any]:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            yield value
