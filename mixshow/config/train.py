"""Options of `mixshow train`. Paths are relative to the folder the command is run in."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from mixshow.config.load import Section, option

# As `mixshow lycoris list` has them; tests hold both to be the same; norms are in no placement.
Algorithm = Literal[
    "locon", "lora", "loha", "lokr", "ia3", "dylora", "glora", "glokr", "full", "diag-oft", "boft", "tlora"
]  # fmt: skip
UNetPlacement = Literal["attention", "transformer", "Attention", "Transformer2DModel"]
TextPlacement = Literal["attention", "layer", "CLIPAttention", "CLIPEncoderLayer"]


@dataclasses.dataclass(frozen=True)
class ConceptOptions(Section):
    tokens: str = option("the concept's tokens, joined by '+': <pip1>+<pip2>")
    initialiser: str = option(
        "what each token starts from, joined by '+': <rand-SIGMA> or a word of the base: <rand-0.013>+boy"
    )


@dataclasses.dataclass(frozen=True)
class DataOptions(Section):
    images: Path = option("folder of training pictures of any size (jpg, png, webp, bmp)")
    size: int = option("side of the square canvas in pixels")
    masks: Path | None = option("folder of masks, white on the subject, with the pictures' names", None)
    captions: Path | None = option(
        "folder of <name>.txt whose first line is the caption, <TOK> standing for the concept", None
    )
    prompt: str = option("caption of every picture where no captions are given", "<TOK>")
    transform: Literal["human_crop", "fill_mask", "centre_crop"] = option(
        "onto the canvas: human_crop keeps heads, fill_mask scales at random, centre_crop is not random",
        "human_crop",
    )
    crop_probability: float = option("how often a picture is cropped rather than fitted, 0 to 1", 0.5)
    scale: tuple[float, float] = option("range of fill_mask's random scale", (0.7, 1.0))
    flip: bool = option("mirror half of the pictures", False)
    variants: int | None = option(
        "random placements per picture, encoded once and kept; null: a new one every time", None
    )
    templates: Literal["object", "human", "style"] | None = option(
        "kind of sentences captions are put into; null: none", None
    )
    shuffle_tags: bool = option("shuffle the comma-separated parts of captions", False)
    keep_tags: int = option("parts that stay in front when shuffling", 1)

    def problems(self) -> list[str]:
        return [
            *_unless(self.size > 0, f"size: expected a positive number of pixels, found {self.size}"),
            *_unless(
                0 <= self.crop_probability <= 1,
                f"crop_probability: expected 0 to 1, found {self.crop_probability}",
            ),
            *_unless(
                0 < self.scale[0] <= self.scale[1] <= 2,
                f"scale: expected a range such as [0.7, 1.0], found {list(self.scale)}",
            ),
            *_unless(
                self.variants is None or self.variants > 0,
                f"variants: expected at least 1, found {self.variants}",
            ),
            *_unless(self.keep_tags >= 0, f"keep_tags: expected 0 or more, found {self.keep_tags}"),
        ]


@dataclasses.dataclass(frozen=True)
class PartOptions(Section):
    placement: str = option("which modules get a network")
    rank: int | None = option("rank; null: network.rank", None)
    alpha: float | None = option("the change is scaled by alpha / rank; null: network.alpha", None)


@dataclasses.dataclass(frozen=True)
class BlockOptions(Section):
    """One value per block of the UNet, 25 for Stable Diffusion 1.x and 2.x, 23 for XL; `--dry-run` lists the blocks."""

    ranks: list[int] | None = option("rank of each block's changes, 0: none; null: the UNet's", None)
    alphas: list[float] | None = option(
        "alpha of each block; null: the UNet's, or the block's rank where no alpha is given anywhere", None
    )
    rates: list[float] | None = option("factor on train.lr.unet of each block; 0: no change, null: 1", None)

    def problems(self) -> list[str]:
        found = []
        for name in ("ranks", "rates"):
            values = getattr(self, name)
            found += _unless(
                values is None or all(value >= 0 for value in values), f"{name}: expected 0 or more, found {values}"
            )
        given = {len(values) for values in (self.ranks, self.alphas, self.rates) if values is not None}
        found += _unless(bool(given), "ranks: expected at least one of ranks, alphas and rates, found none")
        return found + _unless(
            len(given) < 2, f"ranks: expected as many values as in alphas and rates, found {sorted(given)}"
        )


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Section):
    algo: Algorithm = option("algorithm of the weight change", "locon")
    rank: int = option("rank of every change", 4)
    alpha: float | None = option("changes are scaled by alpha / rank; null: alpha = rank", None)
    options: dict[str, Any] = option("the algorithm's own, see `mixshow lycoris describe ALGO`", factory=dict)
    text_encoder: TextPlacement | PartOptions | None = option(
        "modules of the text encoder: attention, layer, or {placement, rank, alpha} of its own; null: none",
        "attention",
    )
    unet: UNetPlacement | PartOptions | None = option(
        "modules of the UNet: attention or transformer; null: none", "attention"
    )
    blocks: BlockOptions | None = option("rank, alpha and rate by block of the UNet; null: the same everywhere", None)

    def part(self, model: Literal["text_encoder", "unet"]) -> PartOptions | None:
        """One model's placement, rank and alpha, defaults filled in."""
        given = getattr(self, model)
        if given is None:
            return None
        if not isinstance(given, PartOptions):
            given = PartOptions(given)
        rank = given.rank or self.rank
        alpha = given.alpha if given.alpha is not None else self.alpha
        return PartOptions(given.placement, rank, float(rank) if alpha is None else alpha)

    @property
    def block_alphas(self) -> list[float] | None:
        """Alpha of every block: as given, or the block's rank where no alpha is; None: the UNet's."""
        if self.blocks is None or self.blocks.alphas is not None or self.blocks.ranks is None:
            return None if self.blocks is None else self.blocks.alphas
        given = self.alpha is not None or (isinstance(self.unet, PartOptions) and self.unet.alpha is not None)
        return None if given else [float(rank) for rank in self.blocks.ranks]

    def problems(self) -> list[str]:
        found = _unless(self.rank > 0, f"rank: expected at least 1, found {self.rank}")
        found += _unless(
            self.blocks is None or self.unet is not None, "blocks: are the UNet's, which has no network (unet: null)"
        )
        for model, words in (("text_encoder", get_args(TextPlacement)), ("unet", get_args(UNetPlacement))):
            given = getattr(self, model)
            if isinstance(given, PartOptions) and given.placement not in words:
                found.append(f"{model}.placement: expected one of {', '.join(words)}, found '{given.placement}'")
            if isinstance(given, PartOptions) and given.rank is not None and given.rank < 1:
                found.append(f"{model}.rank: expected at least 1, found {given.rank}")
        return found


@dataclasses.dataclass(frozen=True)
class RateOptions(Section):
    embedding: float = option("of the concept tokens' embeddings; 0: not trained", 1e-3)
    text_encoder: float = option("of the text encoder's network; 0: not trained", 1e-5)
    unet: float = option("of the UNet's network; 0: not trained", 1e-4)

    def problems(self) -> list[str]:
        rates = dataclasses.asdict(self)
        wrong = [f"{name}: expected 0 or more, found {rate}" for name, rate in rates.items() if rate < 0]
        return wrong or _unless(any(rates.values()), "unet: expected at least one learning rate above 0, found none")


@dataclasses.dataclass(frozen=True)
class LoopOptions(Section):
    steps: int | None = option("optimizer steps; give this or repeats", None)
    repeats: int | None = option("how often every picture is seen; give this or steps", None)
    batch_size: int = option("pictures per process and forward pass", 2)
    accumulation: int = option("forward passes per optimizer step", 1)
    mixed_precision: Literal["fp32", "fp16", "bf16"] = option(
        "precision of the base's computation; fp16 needs a GPU", "fp32"
    )
    lr: RateOptions = option("learning rates", factory=RateOptions)
    schedule: Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"] = (
        option("how learning rates change; linear falls to 0", "linear")
    )
    warmup: int = option("steps of rising learning rates at the start", 0)
    weight_decay: float = option("of AdamW", 0.01)
    betas: tuple[float, float] = option("of AdamW", (0.9, 0.999))
    clip_norm: float | None = option("largest norm of the gradients; null: not clipped", None)
    embedding_norm_stop: float | None = option(
        "embeddings freeze once their mean norm reaches this (published for SD 1.5: 0.55); null: never", None
    )
    gradient_checkpointing: bool = option("compute activations twice to save memory", False)

    def problems(self) -> list[str]:
        found = _unless(
            (self.steps is None) != (self.repeats is None),
            "steps: expected either steps or repeats, found " + ("neither" if self.steps is None else "both"),
        )
        for name in ("steps", "repeats", "batch_size", "accumulation"):
            value = getattr(self, name)
            found += _unless(value is None or value > 0, f"{name}: expected at least 1, found {value}")
        for name in ("warmup", "weight_decay"):
            found += _unless(getattr(self, name) >= 0, f"{name}: expected 0 or more, found {getattr(self, name)}")
        for name in ("clip_norm", "embedding_norm_stop"):
            value = getattr(self, name)
            found += _unless(value is None or value > 0, f"{name}: expected more than 0 or null, found {value}")
        return found + _unless(
            all(0 <= beta < 1 for beta in self.betas),
            f"betas: expected two numbers in 0..1, found {list(self.betas)}",
        )


@dataclasses.dataclass(frozen=True)
class LossSection(Section):
    mask: bool = option("count the error on the subject only (needs data.masks)", False)
    unmasked_weight: float = option("with mask: what the rest counts beside the subject; 0: nothing, 1: as much", 0.0)
    noise_offset: float = option("standard deviation of noise that is equal over a channel", 0.0)
    attention_weight: float = option("of the attention regularisation (needs data.masks); 0: none", 0.0)
    attention_form: Literal["outside", "identity"] = option(
        "outside: concept tokens shall not look outside the mask; identity: the last one's attention shall equal it",
        "outside",
    )
    min_snr: float | None = option("gamma of min-SNR weighting; null: none", None)

    def problems(self) -> list[str]:
        return [
            *(
                f"{name}: expected 0 or more, found {getattr(self, name)}"
                for name in ("noise_offset", "attention_weight")
                if getattr(self, name) < 0
            ),
            *_unless(0 <= self.unmasked_weight <= 1, f"unmasked_weight: expected 0 to 1, found {self.unmasked_weight}"),
            *_unless(
                self.mask or not self.unmasked_weight,
                "unmasked_weight: is the share beside a mask; expected mask: true, found false",
            ),
            *_unless(
                self.min_snr is None or self.min_snr > 0,
                f"min_snr: expected more than 0 or null, found {self.min_snr}",
            ),
        ]


@dataclasses.dataclass(frozen=True)
class CheckpointOptions(Section):
    every: int = option("steps between checkpoints; the last step always writes one", 500)
    keep: int = option("newest checkpoints that stay", 2)

    def problems(self) -> list[str]:
        return [
            f"{name}: expected at least 1, found {getattr(self, name)}"
            for name in ("every", "keep")
            if getattr(self, name) < 1
        ]


@dataclasses.dataclass(frozen=True)
class SampleOptions(Section):
    prompts: list[str] | Path = option(
        "prompts of the grid pictures, or a text file with one per line; <TOK> is the concept", factory=list
    )
    seeds: list[int] = option("one picture per prompt and seed", factory=lambda: [0])
    negative_prompt: str = option("what pictures should not show", "")
    steps: int = option("denoising steps", 25)
    guidance: float = option("classifier-free guidance", 7.5)
    scheduler: str = option("any scheduler of diffusers", "DPMSolverMultistepScheduler")
    size: int | None = option("side of the pictures in pixels; null: data.size", None)
    strengths: list[float] = option(
        "strengths of the network, one row of the grid each; 0: embeddings only",
        factory=lambda: [0.0, 0.7, 1.0],
    )

    def problems(self) -> list[str]:
        return [
            *_unless(self.steps > 0, f"steps: expected at least 1, found {self.steps}"),
            *_unless(bool(self.seeds), "seeds: expected at least one"),
            *_unless(bool(self.strengths), "strengths: expected at least one"),
        ]


@dataclasses.dataclass(frozen=True)
class TrainOptions(Section):
    base: str = option("'puppets' (built in), a diffusers folder, a hub id or a single file")
    output: Path = option("folder for the concept file, checkpoints and grids")
    concept: ConceptOptions = option("the concept's tokens")
    data: DataOptions = option("the training pictures")
    train: LoopOptions = option("the training loop")
    network: NetworkOptions = option("the weight change", factory=NetworkOptions)
    loss: LossSection = option("the loss", factory=LossSection)
    checkpoint: CheckpointOptions = option("checkpoints", factory=CheckpointOptions)
    sample: SampleOptions = option(
        "grid pictures at checkpoints; without prompts there are none", factory=SampleOptions
    )
    vae: str | None = option("another place to take the autoencoder from", None)
    seed: int = option("of everything random", 0)

    def problems(self) -> list[str]:
        found = []
        if self.data.masks is None:
            found += _unless(not self.loss.mask, "loss.mask: needs data.masks, which is not given")
            found += _unless(
                not self.loss.attention_weight, "loss.attention_weight: needs data.masks, which is not given"
            )
        if self.network.text_encoder is None and self.network.unet is None and not self.train.lr.embedding:
            found.append("network: nothing is left to train; give a placement or an embedding learning rate")
        return found


def _unless(good: bool, problem: str) -> list[str]:
    return [] if good else [problem]
