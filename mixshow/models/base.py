"""A base: the pretrained text-to-image parts everything starts from.

Stable Diffusion 1.x, 2.x and XL, loaded from a hub id, a diffusers folder or a single file; saved as one of the latter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mixshow.core.errors import MixshowError, explained
from mixshow.core.files import (
    files_written_together,
    folder_written_atomically,
    link_or_copy,
    read_json,
    write_json,
)
from mixshow.models.checkpoint import open_checkpoint
from mixshow.models.checkpoint_write import write_checkpoint
from mixshow.models.embedding_table import with_concept_tokens
from mixshow.models.folder import MODEL_INDEX, folder_parts, model_index
from mixshow.models.kinds import PREDICTIONS
from mixshow.models.schedule import make_scheduler
from mixshow.models.topology import Topology, describe
from mixshow.models.vocabulary import ConceptVocabulary

CONCEPT_CONFIG = "new_concept_cfg.json"
BUILT_IN = "puppets"


@dataclasses.dataclass(eq=False)
class Base:
    """Tokenizers, text encoders, autoencoder, UNet and noise schedule, with the concept tokens it knows.

    Attributes:
        scheduler_config: the noise schedule's configuration; `make_scheduler` builds any sampler from it.
        vocabulary: concept tokens that the tokenizer holds (fused models, or attached concepts).
        source: where it was loaded from, for messages and reports.
        tokenizer_2: with `text_encoder_2` the second pair of XL bases; None: the base has one text encoder.
        zero_empty_prompt: the base was trained with zeros in place of dropped prompts (XL), not with an empty text.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler_config: Mapping[str, Any]
    vocabulary: ConceptVocabulary = dataclasses.field(default_factory=ConceptVocabulary)
    source: str = ""
    tokenizer_2: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    zero_empty_prompt: bool = False

    @cached_property
    def topology(self) -> Topology:
        """Layers, widths and geometry."""
        return describe(self)

    @property
    def models(self) -> dict[str, torch.nn.Module]:
        """What a network can be attached to, by the names used in network files."""
        return {**self.text_encoders, "unet": self.unet}

    @property
    def text_encoders(self) -> dict[str, CLIPTextModel | CLIPTextModelWithProjection]:
        """Text encoders by their names in `models`, in the order in which their states stand side by side."""
        second = {} if self.text_encoder_2 is None else {"text_encoder_2": self.text_encoder_2}
        return {"text_encoder": self.text_encoder, **second}

    @property
    def tokenizers(self) -> dict[str, CLIPTokenizer]:
        """Tokenizers by the names of their text encoders."""
        second = {} if self.tokenizer_2 is None else {"text_encoder_2": self.tokenizer_2}
        return {"text_encoder": self.tokenizer, **second}

    @property
    def text_widths(self) -> tuple[int, ...]:
        """Widths of the text encoders' states; they add up to the width that the UNet reads."""
        return tuple(encoder.config.hidden_size for encoder in self.text_encoders.values())

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: `epsilon` (noise) or `v_prediction` (arXiv 2202.00512)."""
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    @property
    def num_train_timesteps(self) -> int:
        """Length of the noise schedule."""
        return int(make_scheduler(self, "DDPM").config.num_train_timesteps)

    @property
    def device(self) -> torch.device:
        """Where its UNet computes; that of models which accelerate moves there for it is where they go."""
        moved_to = getattr(getattr(self.unet, "_hf_hook", None), "execution_device", None)
        return self.unet.device if moved_to is None else torch.device(moved_to)

    def encode_images(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents of pictures, scaled for the UNet.

        Args:
            images: `[batch, 3, height, width]` in -1..1.
            generator: samples the posterior; None takes its mean.

        Returns:
            `[batch, latent_channels, height / latent_factor, width / latent_factor]`
        """
        posterior = self.vae.encode(images.to(self.vae.device, self.vae.dtype)).latent_dist
        latents = posterior.mode()
        if generator is not None:
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            latents = latents + posterior.std * noise
        return (latents - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures of latents, `[batch, 3, height, width]` in -1..1 (clamped), float32."""
        latents = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        return self.vae.decode(latents).sample.float().clamp(-1, 1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Base:
        """Move all models in place; returns self."""
        for model in (*self.models.values(), self.vae):
            model.to(device) if dtype is None else model.to(device, dtype)
        return self


def load_base(
    source: str | Path,
    *,
    vae: str | Path | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Base:
    """Load a base or a fused model, frozen and in evaluation mode.

    Args:
        source: `"puppets"` (the built-in base), a diffusers folder, a hub id, or a single file.
        vae: another place to take the autoencoder from (published fused models come without one).
        dtype: of all models; XL's autoencoder, which overflows in float16, then stays float32.

    Raises:
        MixshowError: there is no such base, it is of a kind that is not supported, or parts of it are missing or
            unreadable.
    """
    place = place_of(source)
    with explained(not_loaded(str(source))):
        file = open_checkpoint(Path(place)) if Path(place).is_file() else None
        parts = folder_parts(place, dtype) if file is None else file.parts(dtype)
    xl = "text_encoder_2" in parts
    with explained(not_loaded(str(vae or source))):
        autoencoder = _read_vae(place_of(vae or source), dtype, xl) if vae or file is None else file.vae(dtype, xl=xl)
    base = Base(vae=autoencoder, vocabulary=read_vocabulary(place), source=str(source), **parts)
    if file is not None and (embeddings := file.concept_embeddings()):
        base, _ = with_concept_tokens(base, embeddings)
    _check(base)
    if xl and dtype == torch.float16 and autoencoder.config.force_upcast:
        autoencoder.float()
    for model in (*base.models.values(), autoencoder):
        model.eval().requires_grad_(False)
    return base.to(device)


def save_base(
    base: Base,
    place: Path | str,
    *,
    dtype: torch.dtype | None = None,
    extra: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Write a diffusers folder (readable by any diffusers program) with the concept tokens beside it, or one file.

    Args:
        place: a folder, or a `.safetensors` file, which gets the names of the original code.
        dtype: of a single file's tensors; None: as they are, which a folder's always are.
        extra: more JSON files, by name: in the folder, or beside the file under its name (`extra_file`).
        files: more files to put there as they are, by name.

    Raises:
        MixshowError: this base cannot be one file; the disk is full or the place cannot be written. Nothing is left
            behind then.
    """
    if is_single_file(place):
        place = Path(place)
        with files_written_together(place.parent) as temporary:
            for name, source in (files or {}).items():
                link_or_copy(source, extra_file(temporary / place.name, name))
            for name, contents in (extra or {}).items():
                write_json(extra_file(temporary / place.name, name), contents)
            write_checkpoint(base, place, dtype=dtype)  # the last that can fail
        return
    if dtype is not None:
        raise ValueError("a dtype is for single files; move the base to it before writing a folder")
    with folder_written_atomically(place) as temporary:
        for name, tokenizer in base.tokenizers.items():
            tokenizer.save_pretrained(temporary / name.replace("text_encoder", "tokenizer"))
        for name, encoder in base.text_encoders.items():
            encoder.save_pretrained(temporary / name)
        base.vae.save_pretrained(temporary / "vae")
        base.unet.save_pretrained(temporary / "unet")
        write_json(temporary / "scheduler" / "scheduler_config.json", dict(base.scheduler_config))
        write_json(temporary / MODEL_INDEX, model_index(base))
        if base.vocabulary.tokens:
            write_json(temporary / CONCEPT_CONFIG, base.vocabulary.to_config())
        for name, source in (files or {}).items():
            link_or_copy(source, temporary / name)
        for name, contents in (extra or {}).items():
            write_json(temporary / name, contents)


def is_single_file(place: Path | str) -> bool:
    """Whether `save_base` writes one file at this place."""
    return Path(place).suffix == ".safetensors"


def extra_file(place: Path | str, name: str) -> Path:
    """Where `save_base` puts an extra file."""
    place = Path(place)
    return place.parent / f"{place.stem}_{name}" if is_single_file(place) else place / name


def built_in_folder(part: str = "base") -> Path:
    """Folder of a part of the built-in base's weights: `base`, `adapter`, ..."""
    return Path(str(resources.files("mixshow"))) / "puppets" / "weights" / part


def source_problem(source: str | Path) -> str | None:
    """Why `source` can name no base; None when it can (a hub id may still turn out not to exist). Loads nothing."""
    path = Path(source).expanduser()
    looks_like_hub_id = str(source).count("/") == 1 and not str(source).startswith((".", "~", "/")) and not path.suffix
    if str(source) == BUILT_IN or path.exists() or looks_like_hub_id:
        return None
    return (
        f"no such folder or file: '{source}'; expected '{BUILT_IN}', a diffusers folder or a hub id such as "
        "'name/model', or a checkpoint file (.safetensors, .ckpt)"
    )


def place_of(source: str | Path) -> str:
    """A file, or a folder or hub id that diffusers can load from.

    Raises:
        MixshowError: `source` can name no base.
    """
    problem = source_problem(source)
    if problem:
        raise MixshowError(f"base: {problem}")
    if str(source) == BUILT_IN:
        return str(built_in_folder())
    path = Path(source).expanduser()
    return str(path) if path.exists() else str(source)


def read_vocabulary(place: str) -> ConceptVocabulary:
    """The concept tokens of a fused model's folder; none of anything else."""
    file = Path(place) / CONCEPT_CONFIG
    return ConceptVocabulary.from_config(read_json(file), str(file)) if file.is_file() else ConceptVocabulary()


def not_loaded(source: str) -> str:
    return f"base '{source}': cannot be loaded as a diffusers model"


def _read_vae(place: str, dtype: torch.dtype, xl: bool) -> AutoencoderKL:
    if Path(place).is_file():
        return open_checkpoint(Path(place)).vae(dtype, xl=xl)
    return AutoencoderKL.from_pretrained(place, subfolder="vae", torch_dtype=dtype)


def _check(base: Base) -> None:
    """Raises MixshowError when the parts do not fit each other, or predict what nothing here can handle."""
    sizes = {len(tokenizer) for tokenizer in base.tokenizers.values()}
    read, written = base.unet.config.cross_attention_dim, sum(base.text_widths)
    problem = None
    if len(sizes) > 1:
        problem = f"expected two tokenizers of one vocabulary, found {sorted(sizes)} tokens"
    elif read != written:
        problem = f"its UNet reads text states of width {read}, its text encoders write {written}"
    elif base.prediction_type not in PREDICTIONS:
        problem = f"expected a UNet that predicts {' or '.join(PREDICTIONS)}, found '{base.prediction_type}'"
    if problem:
        raise MixshowError(f"base '{base.source}': {problem}")
