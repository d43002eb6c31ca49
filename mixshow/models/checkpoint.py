"""Bases in a single file (`.safetensors`, `.ckpt`), as the original code of Stable Diffusion writes them.

Nothing is looked up: the kind and the configurations come from the tensors, the tokenizer is CLIP's own. The tensors'
names are converted by diffusers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from mixshow.core.errors import MixshowError
from mixshow.core.files import holds_pickle, read_pickled_weights, read_safetensors, read_safetensors_shapes
from mixshow.core.progress import log
from mixshow.models.checkpoint_shapes import (
    SCHEDULE,
    SD1,
    SD2,
    XL,
    Family,
    Shapes,
    check_autoencoder,
    family_of,
    naming_what_is_missing,
    text_config,
    unet_config,
    vae_config,
)
from mixshow.models.clip_tokenizer import clip_tokenizer
from mixshow.models.kinds import kind_problem

# What this program adds to single files that it writes.
BASE_FORMAT, BASE_VERSION = "mixshow.base", 1
EMBEDDINGS = "mixshow.embedding."  # then the text encoder's name in a base, then the concept token

_TEXT_MODEL = "text_model."
_NOT_WEIGHTS = ("embeddings.position_ids",)  # a counter that old files keep


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """An open file.

    Attributes:
        tensors: under the original names.
        metadata: of a safetensors file.
    """

    source: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def parts(self, dtype: torch.dtype) -> dict[str, Any]:
        """What a base is made of, without its autoencoder.

        Raises:
            MixshowError: not a checkpoint, of a kind that is not supported, or incomplete.
        """
        shapes = self.shapes
        family = family_of(shapes, self.source)
        models = outline_of(shapes, self.source)
        unet = cast(UNet2DConditionModel, models.pop("unet"))
        encoders = cast(dict[str, PreTrainedModel], models)
        self._fill(unet, convert_ldm_unet_checkpoint(dict(self.tensors), unet.config))
        for name, encoder in encoders.items():
            self._fill(encoder, self._text_tensors(encoder, family.text_encoders[name]))
        about = self._about()
        schedule = about["scheduler"] if about else self._schedule(unet, family)
        velocity = schedule.get("prediction_type") == "v_prediction"
        if about or velocity:
            unet.register_to_config(sample_size=about["sample_size"] if about else family.velocity_side)
        parts: dict[str, Any] = {"unet": unet.to(dtype), "scheduler_config": schedule}
        for name, encoder in encoders.items():
            tokenizer = clip_tokenizer(
                length=encoder.config.max_position_embeddings,
                pad_with_zero=family.text_encoders[name].endswith(".model."),
            )
            parts |= {name: encoder.to(dtype), name.replace("text_encoder", "tokenizer"): tokenizer}
        return parts | {"zero_empty_prompt": about.get("zero_empty_prompt", len(encoders) > 1)}

    def concept_embeddings(self) -> dict[str, Tensor]:
        """For each concept token `[layers, width]`, two text encoders' side by side; none but in files of this program.

        Raises:
            MixshowError: some are missing.
        """
        encoders = family_of(self.shapes, self.source).text_encoders
        found = {}
        for token in self._about().get("tokens", []):
            names = [f"{EMBEDDINGS}{name}.{token}" for name in encoders]
            missing = [name for name in names if name not in self.tensors]
            if missing:
                raise MixshowError(f"{self.source}: the tensor '{missing[0]}' is missing; write the file again")
            found[token] = torch.cat([self.tensors[name].float() for name in names], dim=1)
        return found

    def vae(self, dtype: torch.dtype, *, xl: bool) -> AutoencoderKL:
        """The autoencoder, of a whole checkpoint or of a file that holds nothing else.

        Args:
            xl: it is for an XL base, whose latents have a scale of their own.

        Raises:
            MixshowError: there is none, or it is incomplete.
        """
        shapes = self.shapes
        check_autoencoder(shapes, self.source)
        with init_empty_weights():
            vae = AutoencoderKL(**vae_config(shapes, XL if xl else SD1))
        self._fill(vae, convert_ldm_vae_checkpoint(dict(self.tensors), vae.config))
        return vae.to(dtype)

    def _text_tensors(self, encoder: PreTrainedModel, prefix: str) -> dict[str, Tensor]:
        own = {name: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}
        if not prefix.endswith(".model."):
            converted = convert_ldm_clip_checkpoint(own)
        else:
            left_out = f"{prefix}transformer.resblocks.{encoder.config.num_hidden_layers}."
            own = {name: tensor for name, tensor in own.items() if not name.startswith(left_out)}
            converted = convert_open_clip_checkpoint(encoder, own, prefix=prefix)
        bare = {name.removeprefix(_TEXT_MODEL): tensor for name, tensor in converted.items()}
        bare = {name: tensor for name, tensor in bare.items() if name not in _NOT_WEIGHTS}
        if not isinstance(encoder, CLIPTextModelWithProjection):
            bare.pop("text_projection.weight", None)
        # transformers 5 drops `text_model.` from the plain encoder's names and keeps it in the other's.
        wanted = {name.removeprefix(_TEXT_MODEL): name for name in encoder.state_dict()}
        return {wanted.get(name, name): tensor for name, tensor in bare.items()}

    def _fill(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors in place, as float32 and in evaluation mode."""
        expected = model.state_dict()
        missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
        wrong = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
        if missing or unknown or wrong:
            what = "missing" if missing else "unknown" if unknown else "of another shape"
            names = sorted(missing or unknown or wrong)
            raise MixshowError(
                f"{self.source}: {len(names)} tensors of its {type(model).__name__} are {what}, '{names[0]}' first; "
                "the file is incomplete, or a model of another build"
            )
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        model.eval()

    def _about(self) -> dict[str, Any]:
        """What this program wrote into the file besides the tensors; nothing where another one wrote it."""
        about = json.loads(self.metadata.get("mixshow", "{}"))
        if about.get("format") != BASE_FORMAT:
            return {}
        if about["version"] > BASE_VERSION:
            raise MixshowError(
                f"{self.source}: expected a base of version {BASE_VERSION} or older, found {about['version']}; update "
                "mixshow"
            )
        return dict(about)

    def _schedule(self, unet: UNet2DConditionModel, family: Family) -> dict[str, Any]:
        schedule = {"_class_name": family.scheduler, **SCHEDULE, "prediction_type": self._prediction(unet, family)}
        if "ztsnr" in self.tensors:  # a mark of models trained down to no signal
            schedule |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        return schedule

    def _prediction(self, unet: UNet2DConditionModel, family: Family) -> str:
        """What the UNet predicts: as the file says, or for 2.x, published both ways, as it turns out."""
        said = self.metadata.get("modelspec.prediction_type")
        if "v_pred" in self.tensors or said in ("v", "v_prediction"):
            return "v_prediction"
        if said is None and family is SD2 and predicts_velocity(unet):
            log.info("%s: predicts velocities (v_prediction), found by running it", self.source)
            return "v_prediction"
        return "epsilon"


def open_checkpoint(path: Path, *, mapped: bool = False) -> Checkpoint:
    """Open a file, whatever its name; pickles are read without running any code.

    Args:
        mapped: see `read_pickled_weights`.

    Raises:
        MixshowError: unreadable, unsafe, or no file of tensors.
    """
    if not holds_pickle(path):
        return Checkpoint(str(path), *read_safetensors(path))
    try:
        contents = read_pickled_weights(path, mapped=mapped)
    except MixshowError as error:
        raise MixshowError(f"{error}; take the model's .safetensors file") from error
    while isinstance(contents, Mapping) and "state_dict" in contents:
        contents = contents["state_dict"]
    if not isinstance(contents, Mapping):
        raise MixshowError(f"{path}: expected tensors by name, found {type(contents).__name__}")
    return Checkpoint(str(path), {str(key): value for key, value in contents.items() if isinstance(value, Tensor)}, {})


def tensor_shapes(path: Path) -> Shapes:
    """The shapes of a file's tensors, by name; the tensors stay on the disk.

    Raises:
        MixshowError: as `open_checkpoint`.
    """
    return open_checkpoint(path, mapped=True).shapes if holds_pickle(path) else read_safetensors_shapes(path)


def checkpoint_outline(path: Path) -> dict[str, nn.Module]:
    """The text encoders and the UNet of a file without weights (on the meta device), by their names in a base.

    Raises:
        MixshowError: as `open_checkpoint` and `Checkpoint.parts`.
    """
    return outline_of(tensor_shapes(path), str(path))


def outline_of(shapes: Shapes, source: str) -> dict[str, nn.Module]:
    """As `checkpoint_outline`, from the tensors' shapes by name."""
    family = family_of(shapes, source)
    with naming_what_is_missing(source, family):
        shape = unet_config(shapes, family)
        texts = {
            name: text_config(shapes, prefix, last_left_out=family is SD2)
            for name, prefix in family.text_encoders.items()
        }
    problem = kind_problem(shape)
    if problem:
        raise MixshowError(f"{source}: {problem}")
    tokenizer = clip_tokenizer(length=1)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    models: dict[str, nn.Module] = {}
    with init_empty_weights():
        for name, keywords in texts.items():
            if keywords["vocab_size"] != len(tokenizer):
                raise MixshowError(
                    f"{source}: expected a text encoder of CLIP's {len(tokenizer)} tokens, found "
                    f"{keywords['vocab_size']}; a checkpoint with other tokens needs a diffusers folder"
                )
            kind = CLIPTextModel if name == "text_encoder" else CLIPTextModelWithProjection
            models[name] = kind(CLIPTextConfig(**keywords, **ends))
        models["unet"] = UNet2DConditionModel(**shape)
    return models


@torch.no_grad()
def predicts_velocity(unet: UNet2DConditionModel) -> bool:
    """Whether a UNet predicts velocities, found by giving it pure noise at the last timestep.

    There the noise is all of its input: predicted noise is that very input, a velocity is nearly the (negative)
    picture, which the input says nothing about.
    """
    side = 2 ** (len(unet.config.block_out_channels) + 1)
    noise = torch.randn(1, unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    states = torch.zeros(1, 1, unet.config.cross_attention_dim)
    last = torch.tensor(SCHEDULE["num_train_timesteps"] - 1)
    output = unet(noise, last, encoder_hidden_states=states).sample
    return bool(functional.cosine_similarity(output.flatten(), noise.flatten(), dim=0) < 0.5)
