"""A base: the pretrained text-to-image parts everything starts from, loaded from and saved as a diffusers folder."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.core.files import folder_written_atomically, read_json, write_json
from mixshow.models.topology import Topology, describe
from mixshow.models.vocabulary import ConceptVocabulary

CONCEPT_CONFIG = "new_concept_cfg.json"
BUILT_IN = "puppets"


@dataclasses.dataclass(eq=False)
class Base:
    """Tokenizer, text encoder, autoencoder, UNet and noise schedule, with the concept tokens it knows.

    Attributes:
        scheduler_config: the noise schedule's configuration; `make_scheduler` builds any sampler from it.
        vocabulary: concept tokens that the tokenizer holds (fused models, or attached concepts).
        source: where it was loaded from, for messages and reports.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    scheduler_config: Mapping[str, Any]
    vocabulary: ConceptVocabulary = dataclasses.field(default_factory=ConceptVocabulary)
    source: str = ""

    @cached_property
    def topology(self) -> Topology:
        """Layers, widths and geometry."""
        return describe(self)

    @property
    def models(self) -> dict[str, torch.nn.Module]:
        """What a network can be attached to, by the names used in network files."""
        return {"text_encoder": self.text_encoder, "unet": self.unet}

    @property
    def device(self) -> torch.device:
        return self.unet.device

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
        for model in (self.text_encoder, self.vae, self.unet):
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
        source: `"puppets"` (the built-in base), a diffusers folder, or a hub id.
        vae: another place to take the autoencoder from (published fused models come without one).

    Raises:
        MixshowError: there is no such base, or parts of it are missing or unreadable.
    """
    place = _place(source)
    with _explained(str(source)):
        tokenizer = CLIPTokenizer.from_pretrained(place, subfolder="tokenizer")
        text_encoder = CLIPTextModel.from_pretrained(place, subfolder="text_encoder", torch_dtype=dtype)
        unet = UNet2DConditionModel.from_pretrained(place, subfolder="unet", torch_dtype=dtype)
        scheduler = diffusers.DDPMScheduler.load_config(place, subfolder="scheduler")
    with _explained(str(vae or source)):
        autoencoder = AutoencoderKL.from_pretrained(_place(vae or source), subfolder="vae", torch_dtype=dtype)
    concept_file = Path(place) / CONCEPT_CONFIG
    vocabulary = ConceptVocabulary()
    if concept_file.is_file():
        vocabulary = ConceptVocabulary.from_config(read_json(concept_file), str(concept_file))
    base = Base(tokenizer, text_encoder, autoencoder, unet, dict(scheduler), vocabulary, str(source)).to(device)
    for model in (text_encoder, autoencoder, unet):
        model.eval().requires_grad_(False)
    return base


def save_base(base: Base, folder: Path | str, *, extra: Mapping[str, Any] | None = None) -> None:
    """Write a diffusers folder (readable by any diffusers program) with the concept tokens beside it.

    Args:
        extra: more JSON files for the folder, by file name.

    Raises:
        MixshowError: the disk is full or the place cannot be written; nothing is left behind then.
    """
    with folder_written_atomically(folder) as temporary:
        base.tokenizer.save_pretrained(temporary / "tokenizer")
        base.text_encoder.save_pretrained(temporary / "text_encoder")
        base.vae.save_pretrained(temporary / "vae")
        base.unet.save_pretrained(temporary / "unet")
        write_json(temporary / "scheduler" / "scheduler_config.json", dict(base.scheduler_config))
        write_json(temporary / "model_index.json", _model_index(base))
        if base.vocabulary.tokens:
            write_json(temporary / CONCEPT_CONFIG, base.vocabulary.to_config())
        for name, contents in (extra or {}).items():
            write_json(temporary / name, contents)


def make_scheduler(base: Base, name: str = "DPMSolverMultistepScheduler", **overrides: Any) -> SchedulerMixin:
    """A sampler over the base's noise schedule.

    Args:
        name: any scheduler class of diffusers; the word `Scheduler` at its end may be left out.
        overrides: options of that scheduler.

    Raises:
        MixshowError: no such scheduler, or an option it does not have.
    """
    schedulers = [entry for entry in dir(diffusers.schedulers) if entry.endswith("Scheduler")]
    full_name = name if name in schedulers else f"{name}Scheduler"
    if full_name not in schedulers:
        raise MixshowError(f"scheduler '{name}': not one of diffusers' schedulers{did_you_mean(name, schedulers)}")
    kind = getattr(diffusers, full_name)
    options = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}
    for option in overrides:
        if option not in options:
            raise MixshowError(
                f"scheduler option '{option}': {full_name} has no such option{did_you_mean(option, options)}"
            )
    return kind.from_config(dict(base.scheduler_config), **overrides)


def built_in_folder(part: str = "base") -> Path:
    """Folder of a part of the built-in base's weights: `base`, `adapter`, ..."""
    return Path(str(resources.files("mixshow"))) / "puppets" / "weights" / part


def source_problem(source: str | Path) -> str | None:
    """Why `source` can name no base; None when it can (a hub id may still turn out not to exist). Loads nothing."""
    path = Path(source).expanduser()
    looks_like_hub_id = str(source).count("/") == 1 and not str(source).startswith((".", "~", "/")) and not path.suffix
    if str(source) == BUILT_IN or path.is_dir() or looks_like_hub_id:
        return None
    return f"no such folder: '{source}'; expected '{BUILT_IN}', a diffusers folder or a hub id such as 'name/model'"


def _place(source: str | Path) -> str:
    """A folder or hub id that diffusers can load from."""
    problem = source_problem(source)
    if problem:
        raise MixshowError(f"base: {problem}")
    if str(source) == BUILT_IN:
        return str(built_in_folder())
    path = Path(source).expanduser()
    return str(path) if path.is_dir() else str(source)


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn the loaders' many errors into one line."""
    try:
        yield
    except Exception as error:  # the hub, safetensors, json and the model classes each raise their own kinds
        if isinstance(error, MixshowError):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MixshowError(f"base '{source}': cannot be loaded as a diffusers model ({first_line})") from error


def _model_index(base: Base) -> dict[str, Any]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", base.scheduler_config.get("_class_name", "PNDMScheduler")],
        "text_encoder": ["transformers", type(base.text_encoder).__name__],
        "tokenizer": ["transformers", type(base.tokenizer).__name__],
        "unet": ["diffusers", type(base.unet).__name__],
        "vae": ["diffusers", type(base.vae).__name__],
    }
