"""Windows into a picture, one around each region: what is made in them alone, and how it is put back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from mixshow.sampling.areas import Feathered, Mask
from mixshow.sampling.detail import DetailPass
from mixshow.sampling.directed import DirectedNetwork
from mixshow.sampling.redo import StartPicture, grown
from mixshow.sampling.regions import Edges, PixelBox, region_shares
from mixshow.sampling.scene import ConditionPicture, PoseGuide, Scene

_SMOOTH = Image.Resampling.LANCZOS
Size = tuple[int, int]
Box = tuple[int, int, int, int]
_Guide = TypeVar("_Guide", PoseGuide, ConditionPicture)


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
    """The part of a picture around one region, made alone.

    Attributes:
        number: of the region.
        seed_offset: the region's.
        box: in the picture, (left, top, right, bottom) in pixels.
        scene: what is made; it has no start yet.
        share: how much of each of the picture's pixels changes, `[height, width]`, 0 to 1.
        networks: that act in it.
        strength: the part of the steps that is made, the last ones.
    """

    number: int
    seed_offset: int
    box: Box
    scene: Scene
    share: Tensor
    networks: Sequence[DirectedNetwork]
    strength: float

    def of(self, picture: Image.Image) -> Scene:
        """What is made of a picture's window; what does not change keeps its content, so that the rest fits it."""
        assert self.scene.size is not None
        part = picture.crop(self.box).resize(self.scene.size, _SMOOTH)
        left, top, right, bottom = self.box
        changes = (self.share[top:bottom, left:right] > 0).float()
        redone = functional.interpolate(changes[None, None], self.scene.size[::-1], mode="nearest")[0, 0]
        return dataclasses.replace(self.scene, start=StartPicture(part, self.strength, redone))

    def put_into(self, picture: Image.Image, made: Image.Image) -> Image.Image:
        """The picture with what was made; other pixels stay the very same."""
        left, top, right, bottom = self.box
        whole = picture.copy()
        whole.paste(made.resize((right - left, bottom - top), _SMOOTH), (left, top))
        share = Image.fromarray((self.share * 255).round().to(torch.uint8).numpy())
        return Image.composite(whole, picture, share)


def windows(
    scene: Scene, detail: DetailPass, *, native: int, multiple: int, networks: Sequence[DirectedNetwork] = ()
) -> Iterator[Window]:
    """The windows of a scene of one pass, one region after the other; none for regions without a pixel of their own.

    Args:
        native: side of the base's pictures in pixels.
        multiple: what sides of pictures must be multiples of.
        networks: of the scene.
    """
    if scene.size is None:
        raise ValueError("windows of regions need the scene's size")
    width, height = scene.size
    shares = region_shares(scene.regions, height, width, scene.size, Edges.SOFT)
    for number in detail.numbers(len(scene.regions)):
        own = shares[1 + number] > 0
        if not own.any():
            continue
        rows, columns = own.any(1).nonzero().flatten(), own.any(0).nonzero().flatten()
        around = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
        side = max(around[2] - around[0], around[3] - around[1])
        border = max(detail.margin + detail.padding, 1.5 * detail.margin)  # the soft one ends half a margin outside
        box = _window(around, side * (1 + 2 * border), scene.size)
        free = shares[0] + shares[1 + number]
        soft = Mask(grown(own.float(), round(detail.margin * side)).double() * free)
        share = Feathered(soft, detail.margin * side).coverage(height, width, scene.size, Edges.SOFT).float()
        acting = [
            dataclasses.replace(network, regions=frozenset({0})) for network in networks if number in network.regions
        ]
        made = _made_size(box, native, multiple)
        alone = _alone(scene, number, detail, box, made, free > 0)
        offset = scene.regions[number].seed_offset
        yield Window(number, offset, box, alone, share, acting, detail.strength)


def _window(around: Box, side: float, size: Size) -> Box:
    """A square around the middle of a box, moved and cut so that it lies in the picture."""
    lengths = [min(round(side), whole) for whole in size]
    middles = [(around[axis] + around[axis + 2]) / 2 for axis in (0, 1)]
    left, top = (
        min(max(0, round(middle - length / 2)), whole - length) for middle, length, whole in zip(middles, lengths, size)
    )
    return left, top, left + lengths[0], top + lengths[1]


def _made_size(box: Box, native: int, multiple: int) -> Size:
    """The size a window is made in: its longer side native, or as it is where that is more."""
    width, height = box[2] - box[0], box[3] - box[1]
    factor = max(1.0, native / max(width, height))
    return max(1, round(width * factor / multiple)) * multiple, max(1, round(height * factor / multiple)) * multiple


def _alone(scene: Scene, number: int, detail: DetailPass, box: Box, size: Size, free: Tensor) -> Scene:
    """One region of a scene as a scene of its own.

    Args:
        free: pixels of the scene's picture that belong to no other region; poses are not shown elsewhere.
    """
    region = dataclasses.replace(
        scene.regions[number], area=PixelBox(0, 0, *size), base_ratio=0.0, span=(0.0, 1.0), weight=1.0, seed_offset=0
    )
    guidance = detail.guidance if detail.guidance is not None else region.guidance
    return dataclasses.replace(
        scene,
        prompt=region.prompt,
        size=size,
        regions=(dataclasses.replace(region, guidance=guidance),),
        pose=scene.pose and _weakened(_pose_in(scene.pose, box, size, free), detail),
        conditions=tuple(_weakened(_condition_in(each, box, size), detail) for each in scene.conditions),
        base_prompt=None,
        background_prompt=None,
        schedule=(),
        steps=detail.steps or scene.steps,
        isolation=None,
        guard=False,
        second=None,
        start=None,
        detail=None,
    )


def _weakened(guide: _Guide, detail: DetailPass) -> _Guide:
    return dataclasses.replace(guide, weight=guide.weight * detail.condition_weight)


def _pose_in(pose: PoseGuide, box: Box, size: Size, free: Tensor) -> PoseGuide:
    shown = Image.fromarray((free * 255).to(torch.uint8).numpy())
    picture = Image.composite(pose.picture, Image.new(pose.picture.mode, pose.picture.size), shown)
    return dataclasses.replace(pose, picture=picture.crop(box).resize(size, Image.Resampling.BILINEAR))


def _condition_in(condition: ConditionPicture, box: Box, size: Size) -> ConditionPicture:
    picture, mask = condition.picture, condition.mask
    if mask is not None:
        values = mask.coverage(picture.height, picture.width, picture.size, Edges.SOFT)
        mask = Mask(values[box[1] : box[3], box[0] : box[2]])
    return dataclasses.replace(condition, picture=picture.crop(box).resize(size, Image.Resampling.BILINEAR), mask=mask)
