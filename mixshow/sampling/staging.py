"""Everything that a scene's regions attach to a base while its pictures are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from mixshow.core.attachment import Attachment
from mixshow.models import Base
from mixshow.sampling.directed import DirectedNetwork, Direction
from mixshow.sampling.found import AttentionSearch
from mixshow.sampling.isolation import IsolatedRegions
from mixshow.sampling.regional_attention import RegionPlan, regional_attention
from mixshow.sampling.scene import Scene
from mixshow.sampling.sought import Sought


class Staging:
    """Regional attention with whatever else a scene asks for: isolation, a guard, networks of regions, a search.

    Attributes:
        encoding: what `RegionPlan.encode` takes as `under`.
        one_by_one: every picture has areas of its own, so that batches must be of one picture.
    """

    def __init__(self, base: Base, scene: Scene, plan: RegionPlan, networks: Sequence[DirectedNetwork] = ()) -> None:
        """
        Args:
            plan: of the scene, with the `network_marks` of these networks.
        """
        self.base, self.scene, self.plan = base, scene, plan
        self._direction = Direction(base, plan, networks)
        self.encoding = self._direction.encoding
        self.one_by_one = any(isinstance(region.area, Sought) for region in plan.regions)
        self._begin: list[Callable[[int, int], object]] = [plan.begin_step]

    def attach(self, states: Tensor) -> Attachment:
        """Attach it all until the handle is detached; without regions that is nothing.

        Args:
            states: see `regional_attention`.
        """
        attachment = Attachment()
        if not self.plan.regions:
            return attachment
        unet = self.base.unet
        self._begin = [self.plan.begin_step]
        ids = self.plan.ids(self.base, self.scene.reading, states.shape[-2])
        search = AttentionSearch(self.base, self.plan, ids) if self.one_by_one else None
        guard = self.plan.guard(self.base, ids) if self.scene.guard else None
        try:
            attachment.add(regional_attention(unet, self.plan, states, guard, search).detach)
            attachment.add(self._direction.attach().detach)
            if search is not None:
                self._begin.append(search.begin_step)
            if self.scene.isolation is not None:
                isolated = IsolatedRegions(self.plan, self.scene.isolation)
                self._begin.append(isolated.begin_step)
                attachment.add(isolated.attach(unet).detach)
        except BaseException:
            attachment.detach()
            raise
        return attachment

    def begin_step(self, step: int, steps: int) -> None:
        """To be called before step `step` of `steps`."""
        for begin in self._begin:
            begin(step, steps)
