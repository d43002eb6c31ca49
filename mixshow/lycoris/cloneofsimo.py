"""Files of cloneofsimo's `lora_diffusion`: low-rank factors numbered in module order, `unet:17:up`, and plain tokens.

The order is that of the model classes of early 2023, which is written down here: blocks down, up, middle; in each
transformer block self-attention, feed-forward, cross-attention. The change is `up @ down`, without a scale.

Its first files were pickles, one per model: `NAME.pt` of the UNet, `NAME.text_encoder.pt`, and `NAME.ti.pt` of the
tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_pickled_weights
from mixshow.lycoris.naming import NameIndex

_KEY = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
_SIDES = ("down_blocks", "up_blocks", "mid_block")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out_0")
_TEXT_ATTENTION = ("k_proj", "v_proj", "q_proj", "out_proj")
_UNET_CLASSES = {"CrossAttention", "Attention", "GEGLU"}
_EMBEDDING = "bundle_emb."  # where embeddings in network files are kept
_TEXT_FILE, _TOKENS_FILE = ".text_encoder.pt", ".ti.pt"


def recognises(tensors: Collection[str]) -> bool:
    """Whether these are the keys of such a file."""
    return any(_KEY.fullmatch(key) for key in tensors)


def is_list(contents: Any) -> TypeGuard[Sequence[Tensor]]:
    """Whether the contents of a pickle are those of the first files: up, down, up, down, ..."""
    return (
        isinstance(contents, Sequence)
        and len(contents) > 0
        and len(contents) % 2 == 0
        and all(isinstance(tensor, Tensor) for tensor in contents)
    )


def numbered(path: Path, contents: Sequence[Tensor]) -> dict[str, Tensor]:
    """The tensors of such a file under the names of later ones, with those of the files that belong to it beside it.

    Raises:
        MixshowError: a file beside it is of another form.
    """
    if path.name.endswith(_TEXT_FILE):
        return _numbered("text_encoder", contents)
    found = _numbered("unet", contents)
    text, tokens = path.with_suffix(_TEXT_FILE), path.with_suffix(_TOKENS_FILE)
    if text.is_file():
        beside = read_pickled_weights(text)
        if not is_list(beside):
            raise MixshowError(f"{text}: expected a list of factors, as in {path.name}, found something else")
        found |= _numbered("text_encoder", beside)
    if tokens.is_file():
        found |= {str(token): vector for token, vector in read_pickled_weights(tokens).items()}
    return found


def _numbered(model: str, contents: Sequence[Tensor]) -> dict[str, Tensor]:
    return {f"{model}:{i // 2}:{('up', 'down')[i % 2]}": tensor for i, tensor in enumerate(contents)}


def named(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], index: NameIndex) -> dict[str, Tensor]:
    """The tensors under the names of other network files; tokens as bundled embeddings (`bundle_emb.<s1>.emb_params`).

    Raises:
        MixshowError: the file changes more kinds of modules than the usual ones, or another number of them than the
            base has.
    """
    numbered: dict[str, dict[int, dict[str, Tensor]]] = {"text_encoder": {}, "unet": {}}
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if match := _KEY.fullmatch(key):
            model, number, factor = match.groups()
            numbered[model].setdefault(int(number), {})[factor] = tensor
        elif key.startswith("<"):
            found[f"{_EMBEDDING}{key}.emb_params"] = tensor[None] if tensor.dim() == 1 else tensor
        else:
            found[key] = tensor  # left to the reader's own message
    for model, factors in numbered.items():
        if not factors:
            continue
        if model == "text_encoder":
            names = _text_encoder_order(index)
        else:
            names = _unet_order(index, metadata, len(factors))
        if sorted(factors) != list(range(len(names))):
            raise MixshowError(
                f"expected factors for {len(names)} modules of the {model}, found {len(factors)}; the file was made "
                "for another base, or with the option that changes convolutions too, which is not read"
            )
        for number, name in enumerate(names):
            if set(factors[number]) != {"up", "down"}:
                raise MixshowError(f"'{model}:{number}' has only one of its two factors; the file is incomplete")
            found[f"{name}.alpha"] = torch.tensor(float(factors[number]["down"].shape[0]))  # a scale of 1
            found[f"{name}.lora_up.weight"] = factors[number]["up"]
            found[f"{name}.lora_down.weight"] = factors[number]["down"]
    return found


def _text_encoder_order(index: NameIndex) -> list[str]:
    layer = re.compile(r"(lora_te1?_text_model_encoder_layers_(\d+)_self_attn_)q_proj")
    matches = sorted(filter(None, map(layer.fullmatch, index.modules)), key=lambda match: int(match[2]))
    return [f"{match[1]}{part}" for match in matches for part in _TEXT_ATTENTION]


def _unet_order(index: NameIndex, metadata: Mapping[str, str], count: int) -> list[str]:
    """The UNet's modules in order; where the file does not tell the kinds, those that give so many."""
    if "unet" not in metadata:
        orders = [_modules_of(index, classes) for classes in (_UNET_CLASSES, _UNET_CLASSES - {"GEGLU"})]
        return next((names for names in orders if len(names) == count), orders[0])
    classes = set(json.loads(metadata["unet"]))
    if classes - _UNET_CLASSES:
        raise MixshowError(f"changes modules of the kinds {sorted(classes - _UNET_CLASSES)}, which is not read")
    return _modules_of(index, classes)


def _modules_of(index: NameIndex, classes: Collection[str]) -> list[str]:
    """The UNet's modules of some kinds, in order."""
    block = re.compile(r"(lora_unet_(down_blocks|up_blocks|mid_block)_.*transformer_blocks_\d+_)attn1_to_q")
    blocks = sorted(filter(None, map(block.fullmatch, index.modules)), key=lambda match: _SIDES.index(match[2]))
    attention = set(classes) & {"CrossAttention", "Attention"}
    parts = [
        *(f"attn1_{part}" for part in _ATTENTION if attention),
        *(["ff_net_0_proj"] if "GEGLU" in classes else []),
        *(f"attn2_{part}" for part in _ATTENTION if attention),
    ]
    return [f"{match[1]}{part}" for match in blocks for part in parts]
