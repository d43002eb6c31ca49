"""Files of cloneofsimo's `lora_diffusion`: low-rank factors numbered in module order, `unet:17:up`, and plain tokens.

The order is that of the model classes of early 2023, which is written down here: blocks down, up, middle; in each
transformer block self-attention, feed-forward, cross-attention. The change is `up @ down`, without a scale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.lycoris.naming import NameIndex

_KEY = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
_SIDES = ("down_blocks", "up_blocks", "mid_block")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out_0")
_TEXT_ATTENTION = ("k_proj", "v_proj", "q_proj", "out_proj")
_UNET_CLASSES = {"CrossAttention", "Attention", "GEGLU"}
_EMBEDDING = "bundle_emb."  # where embeddings in network files are kept


def recognises(tensors: Collection[str]) -> bool:
    """Whether these are the keys of such a file."""
    return any(_KEY.fullmatch(key) for key in tensors)


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
        names = _text_encoder_order(index) if model == "text_encoder" else _unet_order(index, metadata)
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


def _unet_order(index: NameIndex, metadata: Mapping[str, str]) -> list[str]:
    classes = set(json.loads(metadata.get("unet", json.dumps(sorted(_UNET_CLASSES)))))
    if classes - _UNET_CLASSES:
        raise MixshowError(f"changes modules of the kinds {sorted(classes - _UNET_CLASSES)}, which is not read")
    block = re.compile(r"(lora_unet_(down_blocks|up_blocks|mid_block)_.*transformer_blocks_\d+_)attn1_to_q")
    blocks = sorted(filter(None, map(block.fullmatch, index.modules)), key=lambda match: _SIDES.index(match[2]))
    attention = classes & {"CrossAttention", "Attention"}
    parts = [
        *(f"attn1_{part}" for part in _ATTENTION if attention),
        *(["ff_net_0_proj"] if "GEGLU" in classes else []),
        *(f"attn2_{part}" for part in _ATTENTION if attention),
    ]
    return [f"{match[1]}{part}" for match in blocks for part in parts]
