"""A scene as a value: everything that is in one picture, and how it is sampled."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter
from PIL import Image

from mixshow.models import PromptReading
from mixshow.sampling.areas import Mask, Scaled
from mixshow.sampling.detail import DetailPass
from mixshow.sampling.generate import DEFAULT_SCHEDULER
from mixshow.sampling.hires import SecondPass
from mixshow.sampling.isolation import Isolation
from mixshow.sampling.precision import Precision
from mixshow.sampling.redo import StartPicture
from mixshow.sampling.regions import Edges, Region


@dataclasses.dataclass(frozen=True)
class PoseGuide:
    """A condition picture for an adapter or a ControlNet.

    Attributes:
        picture: of the scene's size.
        weight: factor on what it adds.
        span: part of the steps in which they count, from 0.0 to 1.0.
        control_type: of a union ControlNet that reads it, the number of poses.
    """

    picture: Image.Image
    weight: float = 1.0
    span: tuple[float, float] = (0.0, 1.0)
    control_type: int | None = None


ConditionReader = T2IAdapter | ControlNetModel | ControlNetUnionModel


@dataclasses.dataclass(frozen=True)
class ConditionPicture:
    """A picture that guides the layout, for an adapter or a ControlNet.

    Attributes:
        picture: of the scene's size.
        weight: factor on what it adds.
        span: part of the steps in which it counts, from 0.0 to 1.0.
        mask: where it counts; None: everywhere.
        control_type: of union ControlNets, which kind of picture it is.
    """

    picture: Image.Image
    weight: float = 1.0
    span: tuple[float, float] = (0.0, 1.0)
    mask: Mask | None = None
    control_type: int | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """What to compose.

    Attributes:
        prompt: for the whole picture.
        base_prompt: what regions' base ratios attend to; None: the prompt.
        background_prompt: what positions that no region covers attend to; None: the prompt.
        schedule: `(from, factor)`: from which part of the steps on regions' own prompts count by which factor, 0.0 to
            1.0; the base prompt has the rest.
        size: (width, height) in pixels; None, the base's native square, only without regions and pose.
        regions: parts of the picture with their own prompts.
        pose: layout guide, or None.
        conditions: further ones; what all of them add is summed.
        edges: how boxes end inside coarse positions.
        isolation: keeps regions apart in self-attention; None: they see each other.
        guard: regions' concept tokens are attended to from their regions only.
        reading: how all prompts are read.
        rescale: of guidance; see `guided`.
        second: a larger pass behind the first, or None.
        start: a picture to begin from, or None. One of the second pass's size is made there alone; of one of which
            regions are made again, these go through both passes.
    """

    prompt: str
    size: tuple[int, int] | None = None
    negative_prompt: str = ""
    regions: tuple[Region, ...] = ()
    pose: PoseGuide | None = None
    conditions: tuple[ConditionPicture, ...] = ()
    edges: Edges = Edges.HARD
    base_prompt: str | None = None
    background_prompt: str | None = None
    schedule: tuple[tuple[float, float], ...] = ()
    steps: int = 25
    guidance: float = 7.5
    scheduler: str = DEFAULT_SCHEDULER
    scheduler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    precision: Precision = Precision.AUTO
    isolation: Isolation | None = None
    guard: bool = False
    reading: PromptReading = PromptReading()
    rescale: float = 0.0
    second: SecondPass | None = None
    start: StartPicture | None = None
    detail: DetailPass | None = None

    def __post_init__(self) -> None:
        if self.size is None and (self.regions or self.pose or self.conditions):
            raise ValueError("a scene with regions, a pose or conditions needs a size")

    def scaled(self, size: tuple[int, int]) -> Scene:
        """The same scene in a picture of another size, of one pass."""
        scene = dataclasses.replace(self, size=size, second=None)
        if self.size is None or self.size == size:
            return scene
        regions = [dataclasses.replace(region, area=Scaled(region.area, self.size)) for region in self.regions]
        pose = self.pose
        if pose is not None:
            pose = dataclasses.replace(pose, picture=pose.picture.resize(size, Image.Resampling.BILINEAR))
        conditions = [
            dataclasses.replace(each, picture=each.picture.resize(size, Image.Resampling.BILINEAR))
            for each in self.conditions
        ]
        return dataclasses.replace(scene, regions=tuple(regions), pose=pose, conditions=tuple(conditions))

    @property
    def prompts(self) -> list[str]:
        """All prompts, negative ones too."""
        own = [prompt for region in self.regions for prompt in (region.prompt, region.negative_prompt)]
        whole = (self.prompt, self.base_prompt, self.background_prompt, self.negative_prompt)
        return [*(prompt for prompt in whole if prompt is not None), *own]

    @property
    def guided(self) -> bool:
        """Whether guidance is not 1 everywhere."""
        return any(factor != 1 for factor in (self.guidance, *self._own_guidance))

    @property
    def guided_alike(self) -> bool:
        """Whether guidance is the same everywhere."""
        return all(factor == self.guidance for factor in self._own_guidance)

    @property
    def _own_guidance(self) -> list[float]:
        return [region.guidance for region in self.regions if region.guidance is not None]
