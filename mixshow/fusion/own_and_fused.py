"""Passes in which a concept's own model and the fused one run in one batch, on the same points of the same pictures.

All are made on the base: a layer's output is the base's, and hooks add to one half what the concept changes there, to
the other what is fused by then.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.processes import Processes
from mixshow.core.progress import progress_bar
from mixshow.core.seeding import derived_seed
from mixshow.fusion.collect import LARGE, Collection
from mixshow.fusion.deltas import Deltas
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.layers import Layer, Stage, changed_output, layers_of
from mixshow.fusion.members import Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.prompts import filled
from mixshow.fusion.walks import walk
from mixshow.models import Base, PromptStates, prompt_states
from mixshow.models.topology import residual_streams
from mixshow.sampling.generate import latent_size

UNET = (Stage.KEY_VALUE, Stage.SPATIAL)
_WHILE_IT_RUNS = 50  # pictures of the first block
_HELD_AT_A_LAYER = 9  # pictures of the first block: four times as wide an input, the output, and streams


@dataclasses.dataclass(eq=False)
class Pass:
    """Some points in the concept's own model and, behind them in one batch, in the fused one.

    Attributes:
        number: of the concept; the base's on ordinary captions is the last.
        prompts: of the points.
        latents: of the points, once.
        states: of own and fused model.
        streams: what the modules that read residual streams read last, by path.
    """

    number: int
    prompts: Sequence[str]
    latents: Tensor
    times: Tensor
    states: PromptStates
    streams: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def run(self, unet: nn.Module) -> None:
        """A greenlet has variables of its own, so that hooks know whose pass it is."""
        _RUNNING.set(self)
        both = torch.cat([self.latents, self.latents])
        unet(both, torch.cat([self.times, self.times]), **self.states.to(both.dtype).for_unet(both))


_RUNNING: ContextVar[Pass] = ContextVar("running")


def chosen_steps(number: int, steps: int, points: int) -> list[int]:
    """Of a picture's denoising steps those that are points; the next picture has the next ones.

    Example:
        >>> chosen_steps(0, steps=8, points=2), chosen_steps(1, steps=8, points=2)
        ([0, 4], [1, 5])
    """
    points = min(points, steps)
    return sorted({(number + place * steps // points) % steps for place in range(points)})


def chosen_points(number: int, pictures: int, steps: int, points: int) -> dict[int, list[int]]:
    """The steps that are points, by the pictures that are drawn for them: as many pictures as possible.

    Args:
        number: of the concept; fewer points than pictures are those of others than the next concept's.

    Example:
        >>> chosen_points(0, pictures=4, steps=8, points=6)
        {0: [0, 4], 1: [1, 5], 2: [2], 3: [3]}
        >>> chosen_points(1, pictures=4, steps=8, points=2)
        {1: [1], 3: [3]}
    """
    points = min(points, pictures * steps)
    drawn = min(points, pictures)
    chosen = sorted((number + place * pictures // drawn) % pictures for place in range(drawn))
    each, more = divmod(points, drawn)
    return {picture: chosen_steps(picture, steps, each + (place < more)) for place, picture in enumerate(chosen)}


def passes_of(
    base: Base,
    members: Sequence[Member],
    fused: Fusion,
    collection: Collection,
    objective: Objective,
    processes: Processes,
    show_progress: bool,
) -> list[Pass]:
    """This process's share of all points, some at a time."""
    anchored = objective.anchor_weight > 0
    together = pictures_together(base, collection)
    found: list[Pass] = []
    with progress_bar(len(members) + anchored, "pictures to solve on", enabled=show_progress) as bar:
        for number in range(len(members) + anchored):
            model: contextlib.AbstractContextManager[Base] = contextlib.nullcontext(base)
            prompts = list(objective.captions)
            if number < len(members):
                model = members[number].in_place(base)
                prompts = filled(collection.picture_prompts, members[number].concept.text)
            share = collection.share_of_points(len(members), captions=number == len(members))
            chosen = chosen_points(number, len(prompts), collection.steps, share)
            pictures = list(chosen)[processes.part(number)]
            with model as own:
                for start in range(0, len(pictures), together):
                    part = {picture: chosen[picture] for picture in pictures[start : start + together]}
                    found += _points(own, prompts, part, number, collection, together)
            bar.update()
    with fused.in_place(base) as model_fused:
        for each in found:
            each.states = PromptStates.joined([each.states, prompt_states(model_fused, each.prompts)])
    return found


def _points(
    own: Base,
    prompts: Sequence[str],
    pictures: Mapping[int, Sequence[int]],
    number: int,
    collection: Collection,
    together: int,
) -> list[Pass]:
    """Of some pictures, with the states of the model that draws them.

    Args:
        pictures: by number, with the steps that are points.
        together: points of a pass.
    """
    texts = [prompts[picture] for picture in pictures]
    seeds = [derived_seed(collection.seed, "sequential", picture) for picture in pictures]
    walked = walk(own, texts, seeds, collection.steps, collection.width, collection.height)
    rows = [(place, step) for place, steps in enumerate(pictures.values()) for step in steps]
    found = []
    for start in range(0, len(rows), together):
        part = rows[start : start + together]
        places = [place for place, _ in part]
        found.append(
            Pass(
                number,
                [texts[place] for place in places],
                torch.stack([walked.points[step][0][place] for place, step in part]),
                torch.stack([torch.as_tensor(walked.points[step][1], device=own.device) for _, step in part]),
                walked.states[places],
            )
        )
    return found


def pictures_together(base: Base, collection: Collection) -> int:
    """How many are drawn together, and points of a pass: fewer of large pictures, each of which fills a device."""
    height, width = latent_size(base, collection.width, collection.height)
    return max(1, min(collection.batch_size, collection.batch_size * LARGE // (height * width)))


def running_bytes(base: Base, collection: Collection) -> int:
    """Memory that a pass of one picture through the UNet takes while it runs; measured with SD 1.5's shape."""
    height, width = latent_size(base, collection.width, collection.height)
    return base.unet.dtype.itemsize * _WHILE_IT_RUNS * int(base.unet.config.block_out_channels[0]) * height * width


def waiting_bytes(base: Base, collection: Collection, points: int) -> int:
    """Memory that so many points hold while they wait at a layer, in two models each.

    That is what the way up reads of the way down, and about as much as a wide layer reads and its block keeps beside.
    """
    config = base.unet.config
    height, width = latent_size(base, collection.width, collection.height)
    depths = config.layers_per_block
    positions, elements = height * width, 0
    for number, channels in enumerate(config.block_out_channels):
        depth = depths if isinstance(depths, int) else depths[number]
        last = number + 1 == len(config.block_out_channels)
        elements += channels * (depth * positions + (0 if last else positions // 4))
        positions //= 4
    widest = config.block_out_channels[0] * height * width
    point = 2 * base.unet.dtype.itemsize * (elements + (1 + _HELD_AT_A_LAYER) * widest)
    return points * point


@contextlib.contextmanager
def told_apart(
    base: Base, solving: Mapping[str, Layer], deltas: Sequence[Deltas], fused: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within the block the other layers of the UNet add, in passes, what is changed in own and fused model.

    Residual streams are kept in passes too, where layers that are being solved add to them.
    """
    streams = residual_streams(base.unet)
    with Attachment() as attachment:
        for path in {streams[path] for path in solving if path in streams}:
            module = base.unet.get_submodule(path)
            attachment.add_hook(module.register_forward_pre_hook(partial(_keep_stream, path)))
        for layer in layers_of(base).values():
            if (
                layer.stage in UNET
                and layer.path not in solving
                and any(layer.path in each for each in (*deltas, fused))
            ):
                hook = partial(_change_both, layer.path, deltas, fused)
                attachment.add_hook(layer.module.register_forward_hook(hook))
        yield


def _keep_stream(path: str, _: nn.Module, arguments: tuple[Any, ...]) -> None:
    _RUNNING.get().streams[path] = arguments[0]


def _change_both(
    path: str,
    deltas: Sequence[Deltas],
    fused: Mapping[str, Tensor],
    module: nn.Module,
    arguments: tuple[Any, ...],
    output: Tensor,
) -> Tensor:
    number, x = _RUNNING.get().number, arguments[0].chunk(2)
    # Formed at every pass: held for all layers they would take as much as the concepts' models.
    both = deltas[number].get(path) if number < len(deltas) else None, fused.get(path)
    parts = [
        part if change is None else part + changed_output(module, own, change)
        for part, own, change in zip(output.chunk(2), x, both)
    ]
    return torch.cat(parts)
