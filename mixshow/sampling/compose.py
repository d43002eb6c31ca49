"""Pictures of a scene."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mixshow.core.seeding import derived_seed
from mixshow.models import Base, PromptStates
from mixshow.sampling.denoise import Callback
from mixshow.sampling.directed import DirectedNetwork, network_marks
from mixshow.sampling.generate import latent_size, latents_of_states, pixels_of, start_noise, to_pictures
from mixshow.sampling.hires import enlarged
from mixshow.sampling.original import Original
from mixshow.sampling.redo import StartPicture
from mixshow.sampling.regional_attention import RegionPlan
from mixshow.sampling.scene import ConditionReader, Scene
from mixshow.sampling.scene_guide import scene_guide
from mixshow.sampling.staging import Staging
from mixshow.sampling.windows import Window, windows

_SMOOTH = Image.Resampling.LANCZOS


@torch.no_grad()
def compose(
    base: Base,
    scene: Scene,
    *,
    seeds: Sequence[int],
    adapter: ConditionReader | None = None,
    readers: Sequence[ConditionReader] = (),
    batch_size: int = 1,
    callback: Callback | None = None,
    networks: Sequence[DirectedNetwork] = (),
) -> list[Image.Image]:
    """Make one picture of the scene per seed.

    Args:
        adapter: reads the scene's pose; needed when it has one.
        readers: the network that reads each of the scene's conditions.
        batch_size: pictures denoised together. The same seed gives the same picture to the last bit only in the
            same batch. 1 where regions are found from attention.
        callback: see `denoise`; it is also told `pass` (from 0) and `passes`.
        networks: networks that act in some regions only, attached while the pictures are made.

    Returns:
        RGB pictures of the scene's size, or that of its second pass.

    Raises:
        MixshowError: the size does not fit the base, or there is no such scheduler or option.
    """
    start, second = scene.start, scene.second
    begin = start
    if start is not None and second is not None and start.picture.size == second.size:
        if start.redone is None:
            scene, second = scene.scaled(second.size), None
        elif scene.size is not None:
            begin = start.resized(scene.size)
    scene = dataclasses.replace(scene, second=second)
    detailed = _windows(base, scene if second is None else scene.scaled(second.size), networks)
    told = _Told(callback, (1 if second is None else 2) + len(detailed) * len(seeds))
    pictures = _whole_pictures(base, scene, begin, seeds, adapter, readers, batch_size, networks, told)
    numbers = itertools.count(told.passes - len(detailed) * len(seeds))
    for window, (place, seed) in itertools.product(detailed, enumerate(seeds)):
        (alone,) = compose(
            base,
            window.of(pictures[place]),
            seeds=[derived_seed(seed + window.seed_offset, "detail", window.number)],  # not one noise for all
            adapter=adapter,
            readers=readers,
            callback=told.in_pass(next(numbers)),
            networks=window.networks,
        )
        pictures[place] = window.put_into(pictures[place], alone)
    return pictures if start is None else [start.pasted(picture) for picture in pictures]


def _whole_pictures(
    base: Base,
    scene: Scene,
    begin: StartPicture | None,
    seeds: Sequence[int],
    adapter: ConditionReader | None,
    readers: Sequence[ConditionReader],
    batch_size: int,
    networks: Sequence[DirectedNetwork],
    told: _Told,
) -> list[Image.Image]:
    """The scene's pictures of its one or two passes; what these hold is let go before windows are made.

    Args:
        begin: what the first pass begins from.
    """
    start, second = scene.start, scene.second
    first = _Pass(base, scene, adapter, readers, networks)
    original = None if begin is None else _original(base, [begin.picture], begin.strength, begin, first.grid)
    batch_size = 1 if first.staging.one_by_one else batch_size
    latents = first.latents(seeds, batch_size, original, told.in_pass(0))
    if second is not None:
        larger = _Pass(base, scene.scaled(second.size), adapter, readers, networks, first.states)
        if start is None or start.redone is None:
            original = Original(enlarged(base, latents, second.size, second.upscale), second.strength)
        else:
            made = [start.pasted(picture.resize(second.size, _SMOOTH)) for picture in _decoded(base, latents, 1)]
            original = _original(base, made, second.strength, start, larger.grid)
        latents = larger.latents(seeds, batch_size, original, told.in_pass(1), steps=second.steps)
    return _decoded(base, latents, batch_size)


def _windows(base: Base, scene: Scene, networks: Sequence[DirectedNetwork]) -> list[Window]:
    """What is made once more of a scene of one pass; of a picture of which regions are made again, only these."""
    if scene.detail is None:
        return []
    redone = None if scene.start is None else scene.start.redone
    topology = base.topology
    native = topology.sample_size * topology.latent_factor
    found = windows(scene, scene.detail, native=native, multiple=topology.size_multiple, networks=networks)
    if redone is None:
        return list(found)
    limited = (dataclasses.replace(window, share=window.share * redone) for window in found)
    return [window for window in limited if window.share.any()]


def _original(
    base: Base, pictures: Sequence[Image.Image], strength: float, start: StartPicture, grid: tuple[int, int]
) -> Original:
    """Pictures to begin from, of which only what is made again changes."""
    latents = [base.encode_images(pixels_of([picture])).float() for picture in pictures]
    keep = start.kept(*grid)
    return Original(torch.cat(latents), strength, None if keep is None else keep.to(base.device))


def _decoded(base: Base, latents: Tensor, batch_size: int) -> list[Image.Image]:
    return [image for batch in latents.split(batch_size) for image in to_pictures(base.decode_latents(batch))]


class _Pass:
    """A scene at one size: what all its batches have in common."""

    def __init__(
        self,
        base: Base,
        scene: Scene,
        adapter: ConditionReader | None,
        readers: Sequence[ConditionReader],
        networks: Sequence[DirectedNetwork],
        states: PromptStates | None = None,
    ) -> None:
        """
        Args:
            states: of the scene's texts, where another pass has encoded them.
        """
        native = base.topology.sample_size * base.topology.latent_factor
        size = scene.size or (native, native)
        self.base, self.scene = base, scene
        self.grid = latent_size(base, *size)
        self.plan = plan_of(dataclasses.replace(scene, size=size), networks)
        self.staging = Staging(base, scene, self.plan, networks)
        self.states = states or self.plan.encode(
            base, guided=scene.guided, reading=scene.reading, under=self.staging.encoding
        )
        self.condition = scene_guide(scene, self.plan, self.grid, adapter, readers)

    def latents(
        self,
        seeds: Sequence[int],
        batch_size: int,
        original: Original | None,
        callback: Callback | None,
        *,
        steps: int | None = None,
    ) -> Tensor:
        """Latents of one picture per seed.

        Args:
            original: what they begin from: one for all, or one for each.
            steps: None: the scene's.
        """
        base, scene, plan = self.base, self.scene, self.plan
        whole = self.states[:, plan.base_text : plan.base_text + 1]
        alike = scene.guided_alike
        guidance = scene.guidance if alike else guidance_map(plan, scene.guidance, self.grid).to(base.device)
        found = []
        with self.staging.attach(self.states.states):
            for start in range(0, len(seeds), batch_size):
                batch = seeds[start : start + batch_size]
                found.append(
                    latents_of_states(
                        base,
                        whole[-1].expanded(len(batch)),
                        whole[0].expanded(len(batch)) if scene.guided else None,
                        seeds=batch,
                        noise=_start_noise(base, plan, batch, self.grid),
                        steps=steps or scene.steps,
                        guidance=guidance,
                        rescale=scene.rescale,
                        scheduler=scene.scheduler,
                        scheduler_options=scene.scheduler_options,
                        original=original and original.part(start, start + batch_size),
                        condition=self.condition,
                        before_step=self.staging.begin_step,
                        callback=callback,
                        precision=scene.precision,
                    )
                )
        return torch.cat(found)


class _Told:
    """A callback that is told the pass, too."""

    def __init__(self, callback: Callback | None, passes: int) -> None:
        self.callback, self.passes = callback, passes

    def in_pass(self, number: int) -> Callback | None:
        """The callback for one pass."""
        callback = self.callback
        if callback is None:
            return None

        def tell(step: dict[str, Any]) -> None:
            step.update({"pass": number, "passes": self.passes})
            callback(step)

        return tell


def plan_of(scene: Scene, networks: Sequence[DirectedNetwork] = ()) -> RegionPlan:
    """The texts of a scene of some size, and where they act.

    Args:
        networks: see `compose`.
    """
    if scene.size is None:
        raise ValueError("a plan of regions needs the scene's size")
    return RegionPlan(
        scene.regions,
        scene.prompt if scene.background_prompt is None else scene.background_prompt,
        scene.negative_prompt,
        size=scene.size,
        edges=scene.edges,
        base_prompt=scene.prompt if scene.base_prompt is None else scene.base_prompt,
        schedule=scene.schedule,
        marks=network_marks(networks, len(scene.regions)),
    )


def guidance_map(plan: RegionPlan, guidance: float, grid: tuple[int, int]) -> Tensor:
    """The guidance of each latent position, `[rows, columns]`: the mean of what its regions ask for."""
    factors = [guidance, *(guidance if region.guidance is None else region.guidance for region in plan.regions)]
    return torch.einsum("r,rhw->hw", torch.tensor(factors, dtype=torch.float64), plan.shares(*grid)).float()


def _start_noise(base: Base, plan: RegionPlan, seeds: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """Start noise of the pictures, that of other seeds where regions have an offset.

    Each position has the noise of one seed, of the region with the largest share: a mean of two would be too weak.
    """
    offsets = [0, *(region.seed_offset for region in plan.regions)]
    noise = start_noise(base, seeds, *grid)
    if not any(offsets):
        return noise
    owner = plan.shares(*grid).argmax(0)
    offset = torch.tensor(offsets)[owner].to(base.device)
    for other in set(offsets) - {0}:
        noise = torch.where(offset == other, start_noise(base, [seed + other for seed in seeds], *grid), noise)
    return noise
