"""Some regions of a picture made again: where that is, and the result pasted back into the picture's own pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mixshow.sampling.areas import Feathered, Mask
from mixshow.sampling.regions import Edges, Region, region_shares


@dataclasses.dataclass(frozen=True, eq=False)
class StartPicture:
    """A picture that a scene begins from.

    Attributes:
        picture: RGB, of the scene's size or that of its second pass.
        strength: see `Original`.
        redone: how much of each pixel is made again, `[height, width]`, float32, 0 to 1; None: everything.
    """

    picture: Image.Image
    strength: float
    redone: Tensor | None = None

    def resized(self, size: tuple[int, int]) -> StartPicture:
        """The same at another size, (width, height) in pixels."""
        redone = self.redone
        if redone is not None:
            redone = functional.interpolate(redone[None, None], size[::-1], mode="area")[0, 0]
        return StartPicture(self.picture.resize(size, Image.Resampling.LANCZOS), self.strength, redone)

    def pasted(self, made: Image.Image) -> Image.Image:
        """A picture that was made, with the very pixels of this one where it was not to change."""
        if self.redone is None:
            return made
        share = Image.fromarray((self.redone * 255).round().to(torch.uint8).numpy())
        return Image.composite(made, self.picture, share)

    def kept(self, rows: int, columns: int) -> Tensor | None:
        """What keeps its content at a latent's resolution, `[rows, columns]`: positions without a pixel to change."""
        if self.redone is None:
            return None
        changes = functional.adaptive_max_pool2d(self.redone[None], (rows, columns))[0]
        return (changes == 0).float()


def redone_area(
    regions: Sequence[Region], numbers: Sequence[int], size: tuple[int, int], *, margin: int, feather: float
) -> Tensor:
    """How much of each pixel is made again with some regions, `[height, width]`, float32, 0 to 1.

    Args:
        numbers: of the regions, from 0. Only what they have of the picture counts, not what lies under others.
        size: (width, height) in pixels.
        margin: by which the area is larger than the regions on every side, in pixels.
        feather: width of its soft border, in pixels, half of it outside of the area.
    """
    shares = region_shares(regions, size[1], size[0], size, Edges.SOFT)
    inside = (shares[[1 + number for number in numbers]].sum(0) > 0).float()
    area = Feathered(Mask(grown(inside, margin).double()), feather)
    return area.coverage(size[1], size[0], size, Edges.SOFT).float()


def grown(inside: Tensor, margin: int) -> Tensor:
    """The largest value within so many pixels of each, `[height, width]`."""
    for _ in range(2):  # along rows, then along columns
        inside = functional.max_pool1d(inside, 2 * margin + 1, stride=1, padding=margin).mT.contiguous()
    return inside
