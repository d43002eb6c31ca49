"""The stream of training samples: sample number n is a function of the seed and n alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mixshow.core.seeding import numpy_generator
from mixshow.edlora.captions import bind_concept, shuffled_tags
from mixshow.edlora.pictures import Picture, open_picture
from mixshow.edlora.templates import in_template
from mixshow.edlora.transforms import (
    TRANSFORMS,
    Placement,
    TransformOptions,
    centre_crop,
    latent_mask,
    on_canvas,
    valid_area,
)
from mixshow.models.base import Base


@dataclasses.dataclass(frozen=True)
class Draw:
    """One sample before any pixel is touched: which picture, placed how, under which prompt."""

    picture: int
    placement: Placement
    prompt: str


@dataclasses.dataclass(frozen=True)
class View:
    """A placed picture.

    Attributes:
        image: `[3, size, size]` in -1..1.
        image_mask: `[1, h, w]` at latent size, 1 where the picture lies.
        subject_mask: `[1, h, w]`, 1 on the subject; None: the data has no masks.
    """

    image: Tensor
    image_mask: Tensor
    subject_mask: Tensor | None


class TrainingData:
    """Pictures with captions, drawn by number.

    Every epoch shows every picture once, in a new order. Where stopped training resumes, and which process draws a
    sample, makes no difference.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        tokens: Sequence[str],
        *,
        transform: str,
        options: TransformOptions,
        flip: bool = False,
        variants: int | None = None,
        templates: str | None = None,
        shuffle_tags: bool = False,
        keep_tags: int = 1,
        seed: int = 0,
    ) -> None:
        """
        Args:
            pictures: at least one.
            transform: a name of `TRANSFORMS`.
            flip: mirror every second placement, on average.
            variants: place each picture in this many ways only, so that their latents can be kept; None: no limit.
            templates: a kind of `TEMPLATES`, or None.
            keep_tags: tags that stay in front when tags are shuffled.
        """
        self.pictures = list(pictures)
        self.tokens = list(tokens)
        self.transform, self.options, self.flip = TRANSFORMS[transform], options, flip
        self.variants = variants
        self.templates, self.shuffle_tags, self.keep_tags = templates, shuffle_tags, keep_tags
        self.seed = seed
        self._decoded: dict[int, tuple[Image.Image, Image.Image | None]] = {}

    @property
    def placements_recur(self) -> bool:
        """Whether the same placements come again, so that keeping what is made of them pays."""
        return self.variants is not None or self.transform is centre_crop

    def draw(self, number: int) -> Draw:
        """Sample `number` (0, 1, ...) of this stream."""
        epoch, place = divmod(number, len(self.pictures))
        picture = int(numpy_generator(self.seed, "order", epoch).permutation(len(self.pictures))[place])
        rng = numpy_generator(self.seed, "sample", number)
        if self.variants is None:
            placement_rng = rng
        else:
            placement_rng = numpy_generator(self.seed, "variant", picture, int(rng.integers(self.variants)))
        width, height = self._picture(picture)[0].size
        placement = self.transform(width, height, self.options, placement_rng)
        if self.flip and placement_rng.random() < 0.5:
            placement = dataclasses.replace(placement, flip=True)
        return Draw(picture, placement, self._prompt(picture, rng))

    def view(self, draw: Draw, latent_factor: int) -> View:
        """The pixels of a draw.

        Args:
            latent_factor: pixels per latent position.
        """
        picture, mask = self._picture(draw.picture)
        size = self.options.size
        pixels = np.asarray(on_canvas(picture, draw.placement, size), dtype=np.float32)
        area = latent_mask(valid_area(draw.placement, size), latent_factor)
        subject = None
        if mask is not None:
            subject = torch.from_numpy(latent_mask(on_canvas(mask, draw.placement, size), latent_factor))[None]
        return View(torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1, torch.from_numpy(area)[None], subject)

    def _prompt(self, picture: int, rng: np.random.Generator) -> str:
        caption = self.pictures[picture].caption
        if self.shuffle_tags:
            caption = shuffled_tags(caption, self.keep_tags, rng)
        if self.templates is not None:
            caption = in_template(caption, self.templates, rng)
        return bind_concept(caption, self.tokens)

    def _picture(self, index: int) -> tuple[Image.Image, Image.Image | None]:
        """A decoded picture and its mask, kept no larger than crops need."""
        if index not in self._decoded:
            entry = self.pictures[index]
            picture = open_picture(entry.path)
            mask = None if entry.mask is None else open_picture(entry.mask, "L")
            # Twice the canvas leaves crops their detail; a camera's full resolution would only fill memory.
            factor = max(1, min(picture.size) // (2 * self.options.size))
            self._decoded[index] = (picture.reduce(factor), None if mask is None else mask.reduce(factor))
        return self._decoded[index]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A placed picture as the distribution of its latent, `[channels, h, w]` each, with its masks."""

    mean: Tensor
    std: Tensor
    image_mask: Tensor
    subject_mask: Tensor | None


class LatentSource:
    """Encodes draws with the base's autoencoder, and keeps what will be drawn again."""

    def __init__(self, base: Base, data: TrainingData) -> None:
        self.base, self.data = base, data
        self._kept: dict[tuple[int, Placement], Encoded] = {}

    @torch.no_grad()
    def encode(self, draws: Sequence[Draw]) -> list[Encoded]:
        """The encoded pictures of draws, in their order."""
        keys = [(draw.picture, draw.placement) for draw in draws]
        missing = {key: draw for key, draw in zip(keys, draws) if key not in self._kept}
        fresh = {}
        for key, draw in missing.items():
            # One at a time: a latent must not depend on what it shares a batch with, or resuming would show.
            fresh[key] = self._encoded(self.data.view(draw, self.base.topology.latent_factor))
        result = [self._kept.get(key) or fresh[key] for key in keys]
        if self.data.placements_recur:
            self._kept |= fresh
        return result

    def _encoded(self, view: View) -> Encoded:
        vae = self.base.vae
        images = view.image[None].to(vae.device, vae.dtype)
        posterior = vae.encode(images).latent_dist
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        mean, std = (posterior.mean.float() - shift) * scale, posterior.std.float() * scale
        return Encoded(mean[0].cpu(), std[0].cpu(), view.image_mask, view.subject_mask)
