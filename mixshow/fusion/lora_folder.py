"""A fused model as one network file with its embeddings, in place of a whole base.

concept.safetensors                 network and layer-wise embeddings of all tokens, for this program
pytorch_lora_weights.safetensors    the network alone, for other programs
embeddings.safetensors              one vector per token, the mean over layers, for other programs; if there are any
embeddings_2.safetensors            the same for the second text encoder of XL
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, tensor

from mixshow.core.files import folder_written_atomically, link_or_copy, write_json, write_safetensors
from mixshow.edlora.concept import TEXT_WIDTHS, Concept, save_concept
from mixshow.fusion.factors import Factors
from mixshow.fusion.layers import Layer, Stage, layers_of
from mixshow.fusion.members import Member
from mixshow.lycoris.carrier import own_weight
from mixshow.lycoris.files import write_network_file
from mixshow.lycoris.metadata import network_metadata
from mixshow.lycoris.naming import NameIndex
from mixshow.models import Base

Naming = Literal["kohya", "diffusers"]
CONCEPT_FILE = "concept.safetensors"
NETWORK_FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for in a folder
EMBEDDINGS_FILE = "embeddings{}.safetensors"


def save_lora_folder(
    base: Base,
    members: Sequence[Member],
    factors: Mapping[str, Factors],
    embeddings: Mapping[str, Tensor],
    folder: Path | str,
    *,
    naming: Naming = "kohya",
    extra: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Write the folder.

    Args:
        factors: by module path.
        embeddings: of all tokens, `[layers, width]`.
        naming: of the network for other programs: `kohya`, which most read; `diffusers`, which PEFT's readers want.
        extra: more JSON files for the folder, by file name.
        files: more files for it, by name.

    Raises:
        MixshowError: the disk is full or the place cannot be written; nothing is left behind then.
    """
    layers = {layer.path: layer for layer in layers_of(base).values()}
    network = kohya_tensors(layers, factors)
    widths = base.text_widths
    about: dict[str, Any] = {
        "base": base.source,
        "topology": base.topology.fingerprint(),
        "fused": [member.concept.text for member in members],
        **({TEXT_WIDTHS: list(widths)} if len(widths) > 1 else {}),
    }
    means = [vectors.float().mean(0).split(widths) for vectors in embeddings.values()]
    with folder_written_atomically(folder) as temporary:
        save_concept(Concept(embeddings, network, about), temporary / CONCEPT_FILE)
        _write_network(base, layers, factors, network, temporary / NETWORK_FILE, naming)
        for number in range(len(widths) if embeddings else 0):
            name = EMBEDDINGS_FILE.format(f"_{number + 1}" if number else "")
            write_safetensors(temporary / name, {token: own[number] for token, own in zip(embeddings, means)})
        for name, source in (files or {}).items():
            link_or_copy(source, temporary / name)
        for name, contents in (extra or {}).items():
            write_json(temporary / name, contents)


def _write_network(
    base: Base,
    layers: Mapping[str, Layer],
    factors: Mapping[str, Factors],
    network: Mapping[str, Tensor],
    path: Path,
    naming: Naming,
) -> None:
    if naming == "diffusers":
        write_safetensors(path, diffusers_tensors(layers, factors), {"format": "pt"})
        return
    rank = _largest_rank(factors)
    about = network_metadata(base.models, algo="lora", dim=rank, alpha=rank)
    sgm = NameIndex(base.models) if base.text_encoder_2 is not None else None
    write_network_file(path, network, about, sgm=sgm)


def kohya_tensors(layers: Mapping[str, Layer], factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """The tensors of a LoRA file in kohya's names; both arguments by module path.

    One alpha, the largest rank, for all modules, and the rest of the scale in the factors: some readers confuse
    several.
    """
    alpha = float(_largest_rank(factors))
    found: dict[str, Tensor] = {}
    for path, each in factors.items():
        name, weight = layers[path].file_name, own_weight(layers[path].module)
        found[f"{name}.alpha"] = tensor(alpha)
        found[f"{name}.lora_up.weight"] = _as_up(each.up * (each.rank / alpha), weight)
        found[f"{name}.lora_down.weight"] = _as_down(each.down, weight)
    return found


def diffusers_tensors(layers: Mapping[str, Layer], factors: Mapping[str, Factors]) -> dict[str, Tensor]:
    """The tensors of a LoRA file in diffusers' names (PEFT's form); both arguments by module path.

    These files have no alpha; readers take each layer's rank for it, or the most frequent one: all get one rank,
    filled up with zeros, so that both are the same.
    """
    most = _largest_rank(factors)
    found: dict[str, Tensor] = {}
    for path, each in factors.items():
        missing, weight = most - each.rank, own_weight(layers[path].module)
        found[f"{_diffusers_name(layers[path])}.lora_A.weight"] = _as_down(F.pad(each.down, (0, 0, 0, missing)), weight)
        found[f"{_diffusers_name(layers[path])}.lora_B.weight"] = _as_up(F.pad(each.up, (0, missing)), weight)
    return found


def _diffusers_name(layer: Layer) -> str:
    if layer.stage is not Stage.TEXT:
        return f"unet.{layer.path}"
    return layer.path if layer.path.startswith("text_encoder_2.") else f"text_encoder.{layer.path}"


def _as_up(up: Tensor, weight: Tensor) -> Tensor:
    return up.float().reshape(*up.shape, *[1] * (weight.dim() - 2))


def _as_down(down: Tensor, weight: Tensor) -> Tensor:
    return down.float().reshape(-1, *weight.shape[1:])


def _largest_rank(factors: Mapping[str, Factors]) -> int:
    return max((each.rank for each in factors.values()), default=1)
