"""Writing a base as a single `.safetensors` file, as the original code of Stable Diffusion names things.

What such files cannot say (concept tokens, the sampler's options, the native size) goes along where other programs do
not look: as tensors and metadata of this program's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.core.files import write_safetensors
from mixshow.models.checkpoint import BASE_FORMAT, BASE_VERSION, EMBEDDINGS, outline_of
from mixshow.models.checkpoint_names import State, clip_tensors, open_clip_tensors, unet_tensors, vae_tensors
from mixshow.models.checkpoint_shapes import SD1, SD2, UNET, VAE, XL, Family, vae_config
from mixshow.models.clip_tokenizer import clip_tokenizer
from mixshow.models.vocabulary import ConceptVocabulary

if TYPE_CHECKING:
    from mixshow.models.base import Base

# Of a configuration: what changes no prediction, or what goes along in the metadata.
_FREE = {"sample_size", "upcast_attention", "force_upcast"}
_TEXT_KEYS = ("hidden_act", "num_attention_heads", "layer_norm_eps")  # what shapes do not show


def write_checkpoint(base: Base, path: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """Write a base as one file, which diffusers' `from_single_file` and this program read the very tensors from.

    Args:
        dtype: of the tensors in the file; None: as they are.

    Raises:
        MixshowError: a single file cannot say what this base is, the disk is full or the place cannot be written.
    """
    problem = single_file_problem(base)
    if problem:
        raise MixshowError(f"{path}: {problem}")
    tensors = _original(base, _states(base)) | _embeddings(base) | _marks(base)
    written = {name: tensor.to(dtype) if dtype else tensor for name, tensor in tensors.items()}
    write_safetensors(path, written, _metadata(base))


def single_file_problem(base: Base) -> str | None:
    """Why a base cannot be one file without becoming another one; None when it can.

    Such files hold no configuration: what a reader would take the tensors for is compared with what the base is.
    """
    problem = _tokens_problem(base) or _models_problem(base)
    return problem and f"{problem}; write a folder instead"


def _models_problem(base: Base) -> str | None:
    """Why a reader, who sees names and shapes only, would make other models of the tensors."""
    shapes_only = {
        name: {key: torch.empty_like(tensor, device="meta") for key, tensor in state.items()}
        for name, state in _states(base).items()
    }
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in _original(base, shapes_only).items()}
        read = {**outline_of(shapes, "base"), "vae": _outline_of_vae(shapes, _family(base))}
    except MixshowError as error:
        return str(error)
    for name, model in {**base.models, "vae": base.vae}.items():
        for what in _differences(model, shapes_only[name], read[name]):
            return f"a single file cannot say that the {name}'s {what}"
    return None


def _family(base: Base) -> Family:
    if base.text_encoder_2 is not None:
        return XL
    return SD1 if base.text_encoder.config.hidden_act == "quick_gelu" else SD2  # OpenAI's CLIP has this one


def _states(base: Base) -> dict[str, State]:
    """State dicts by model, without the rows of concept tokens."""
    states: dict[str, State] = {name: model.state_dict() for name, model in {**base.models, "vae": base.vae}.items()}
    own = len(base.tokenizer) - _concept_rows(base)
    for name in base.text_encoders:
        state = dict(states[name])
        table = next(key for key in state if key.endswith("embeddings.token_embedding.weight"))
        states[name] = state | {table: state[table][:own]}
    return states


def _original(base: Base, states: Mapping[str, State]) -> dict[str, Tensor]:
    """Raises MixshowError where a UNet is of another build."""
    found = _below(UNET, unet_tensors(base.unet, states["unet"])) | _below(VAE, vae_tensors(base.vae, states["vae"]))
    family = _family(base)
    for name, prefix in family.text_encoders.items():
        layers = base.text_encoders[name].config.num_hidden_layers
        if prefix.endswith(".model."):
            own = open_clip_tensors(states[name], layers=layers, last_left_out=family is SD2)
        else:
            own = clip_tensors(states[name])
        found |= _below(prefix, own)
    return found


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _outline_of_vae(shapes: Mapping[str, tuple[int, ...]], family: Family) -> nn.Module:
    with init_empty_weights():
        return AutoencoderKL(**vae_config(shapes, family))


def _differences(model: Any, state: State, read: Any) -> list[str]:
    """What a model has that a file's reader would not know, as ends of a sentence."""
    found = {name: tuple(tensor.shape) for name, tensor in read.state_dict().items()}
    other = [name for name, tensor in state.items() if found.get(name) != tuple(tensor.shape)]
    if other or len(found) != len(state):
        return [f"tensors are as they are ('{(other or sorted(found.keys() - state.keys()))[0]}')"]
    ours, theirs = model.config, read.config
    if isinstance(ours, Mapping):
        names = [name for name in theirs if not name.startswith("_") and name not in _FREE]
        pairs = {name: (ours.get(name), theirs[name]) for name in names}
    else:
        pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in _TEXT_KEYS}
    levels = len(getattr(ours, "block_out_channels", [None]))
    return [
        f"{name} is {own} instead of {other}"
        for name, (own, other) in pairs.items()
        if _by_level(own, levels) != _by_level(other, levels)
    ]


def _by_level(value: Any, levels: int) -> Any:
    """A setting as one value per level, however it is written."""
    values = value if isinstance(value, list | tuple) else [value] * levels
    return [one or None for one in values]


def _concept_rows(base: Base) -> int:
    return sum(len(ids) for ids in base.vocabulary.ids.values())


def _tokens_problem(base: Base) -> str | None:
    """Why a reader of single files, who takes CLIP's tokenizer, would read other tokens."""
    prefixes = _family(base).text_encoders
    for name, tokenizer in base.tokenizers.items():
        encoder = base.text_encoders[name]
        length = encoder.config.max_position_embeddings
        clip = clip_tokenizer(length=length, pad_with_zero=prefixes[name].endswith(".model."))
        known = ConceptVocabulary().extended(base.vocabulary.tokens, base.topology.layers, len(clip))
        entries = clip.get_vocab() | {
            entry: number
            for token, names in known.entries.items()
            for entry, number in zip(names, known.ids[token], strict=True)
        }
        if tokenizer.get_vocab() != entries or base.vocabulary != known:
            return "single files hold no tokenizer, and this base's is not CLIP's with concept tokens after its own"
        if tokenizer.pad_token_id != clip.pad_token_id or tokenizer.model_max_length < length:
            return f"a single file cannot say how its {name} pads and cuts prompts"
        if encoder.get_input_embeddings().num_embeddings != len(entries):
            return f"its {name} has no vectors of its own for the concept tokens; take the concepts off, or fuse them"
    return None


def _embeddings(base: Base) -> dict[str, Tensor]:
    """The concept tokens' vectors, as concept files have them."""
    tables: dict[str, Any] = {name: encoder.get_input_embeddings() for name, encoder in base.text_encoders.items()}
    return {
        f"{EMBEDDINGS}{name}.{token}": table.weight[list(ids)]
        for name, table in tables.items()
        for token, ids in base.vocabulary.ids.items()
    }


def _marks(base: Base) -> dict[str, Tensor]:
    """Empty tensors by whose names programs know what a UNet of 1.x or XL was trained for."""
    velocity = base.prediction_type == "v_prediction" and _family(base) is not SD2
    no_signal = base.scheduler_config.get("rescale_betas_zero_snr")
    names = [*(["v_pred"] if velocity else []), *(["ztsnr"] if no_signal else [])]
    return {name: torch.zeros(0) for name in names}


def _metadata(base: Base) -> dict[str, str]:
    about = {
        "format": BASE_FORMAT,
        "version": BASE_VERSION,
        "tokens": list(base.vocabulary.tokens),
        "scheduler": dict(base.scheduler_config),
        "sample_size": base.topology.sample_size,
        "zero_empty_prompt": base.zero_empty_prompt,
    }
    prediction = {"epsilon": "epsilon", "v_prediction": "v"}[base.prediction_type]
    return {"mixshow": json.dumps(about), "modelspec.prediction_type": prediction}
