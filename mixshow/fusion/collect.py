"""Which inputs a layer's statistics are made of: running a (tuned) base on prompts and recording what layers read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixshow.core.seeding import derived_seed, torch_generator
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.prompts import PICTURES, PUBLISHED_PICTURES, PUBLISHED_TEXT, TEXT
from mixshow.fusion.recorder import StatisticsRecorder
from mixshow.fusion.sensitivity import SensitivityRecorder
from mixshow.fusion.statistics import LayerInputs, LayerStatistics, input_width
from mixshow.fusion.wide import RowSampling
from mixshow.models import Base, PromptStates, encode_prompts, make_scheduler, prompt_states
from mixshow.models.prompts import prompt_ids, text_states
from mixshow.sampling.denoise import denoise
from mixshow.sampling.generate import latent_size, start_noise

Statistics = Mapping[str, LayerInputs]
_TEXTS_AT_A_TIME = 64
POINTS, POINTS_OF_LARGE = 96, 32
CAPTIONS_SHARE = 0.25  # as many more are of ordinary captions
LARGE = 1024  # latent positions of a picture


def default_points(base: Base, width: int | None, height: int | None) -> int:
    """How many points layers are solved on in sequence: a large picture has many rows, and its points hold much."""
    rows, columns = latent_size(base, width, height)
    return POINTS_OF_LARGE if rows * columns > LARGE else POINTS


@dataclasses.dataclass(frozen=True)
class Collection:
    """How statistics are collected.

    Attributes:
        progressive: record each stage through the stages fused before it, with the concept's own network on its own
            stage only (published); otherwise each concept is recorded under its own fully tuned model.
        sequential: spatial layers are solved one after another for what is lacking there by then (`sequential.py`), but
            for wide ones, which are recorded like the others.
        text_prompts: for the text encoder, keys and values; with `{concept}`.
        picture_prompts: for the spatial layers.
        every_position: all token positions of padded prompts; otherwise unpadded prompts, and for keys and values
            the concept tokens and the end token only (published).
        steps: denoising steps that spatial layers are recorded over, without guidance.
        points: of pictures, on which layers are solved in order; the concepts share them. Ordinary captions have a
            quarter as many more.
        width: pixels; None: the base's native side. `height` likewise.
        seed: of the start noise.
        batch_size: pictures denoised together.
        moment_width: inputs wider than this are kept as rows, not as their moment.
        kept_rows: of such inputs; a uniform sample where there are more.
        rows: inputs kept as they are of each layer and concept, for objectives that are no squares.
        sensitive: inputs of spatial layers count by how much the prediction depends on what the layer makes of them.
    """

    progressive: bool = False
    sequential: bool = False
    text_prompts: Sequence[str] = TEXT
    picture_prompts: Sequence[str] = PICTURES
    every_position: bool = True
    steps: int = 8
    points: int = POINTS
    width: int | None = None
    height: int | None = None
    seed: int = 0
    batch_size: int = 8
    moment_width: int = 5120
    kept_rows: int = 2048
    rows: int = 0
    sensitive: bool = False

    def share_of_points(self, members: int, *, captions: bool = False) -> int:
        """Of each concept, or of ordinary captions together."""
        return max(1, int(self.points * CAPTIONS_SHARE) if captions else self.points // members)

    def solves_in_order(self, layer: Layer) -> bool:
        """Whether a layer is one of those that are solved one after another."""
        wide = input_width(layer.module) + layer.extended > self.moment_width
        return self.sequential and layer.stage is Stage.SPATIAL and not wide


PUBLISHED = Collection(
    progressive=True, text_prompts=PUBLISHED_TEXT, picture_prompts=PUBLISHED_PICTURES, every_position=False, steps=20
)


def record(
    base: Base,
    layers: Sequence[Layer],
    stage: Stage,
    collection: Collection,
    *,
    text_prompts: Sequence[str],
    picture_prompts: Sequence[str],
    words: str = "",
    every: slice = slice(None),
    advance: Callable[[int], object] | None = None,
) -> Statistics:
    """Statistics of the layers of one stage, by path, on prompts with concept tokens filled in.

    Args:
        words: by which the prompts name the concept; ordinary ones among them count as concept tokens do.
        every: which of the prompts; where it takes none, there are no statistics.
        advance: called with the number of pictures after each of their denoising steps.
    """
    if stage is Stage.TEXT:
        return text_statistics(base, layers, text_prompts[every], padded=collection.every_position)
    if stage is Stage.KEY_VALUE:
        padded, text_prompts = collection.every_position, text_prompts[every]
        return key_value_statistics(base, layers, text_prompts, every_position=padded, words=words)
    return spatial_statistics(base, layers, picture_prompts, collection, every, advance)


@torch.no_grad()
def text_statistics(base: Base, layers: Sequence[Layer], prompts: Sequence[str], *, padded: bool) -> Statistics:
    """Inputs of text encoder layers at all positions, in all layers' bindings of concept tokens.

    Args:
        padded: run prompts padded to full length, as sampling does.
    """
    with StatisticsRecorder(_modules(layers), extended=_extended(layers), double=True) as recorder:
        for texts in _text_batches(base, prompts, padded):
            text_states(base, texts, pad=padded)
    return recorder.statistics()


@torch.no_grad()
def key_value_statistics(
    base: Base, layers: Sequence[Layer], prompts: Sequence[str], *, every_position: bool, words: str = ""
) -> dict[str, LayerStatistics]:
    """Inputs of cross-attention keys and values: the text states of their own layer.

    Args:
        every_position: all positions of padded prompts; otherwise concept tokens, the tokens of `words` and the end
            token.
    """
    statistics: dict[tuple[int | None, bool], LayerStatistics] = {}
    for key, rows in key_value_rows(base, layers, prompts, every_position, words):
        own, before = LayerStatistics.of_rows(rows, extended=key[1]), statistics.get(key)
        statistics[key] = own if before is None else before + own
    if not prompts:
        return {}
    return {layer.path: statistics[layer.text_layer, layer.extended] for layer in layers}


def key_value_rows(
    base: Base, layers: Sequence[Layer], prompts: Sequence[str], every_position: bool, words: str = ""
) -> Iterator[tuple[tuple[int | None, bool], Tensor]]:
    """Rows `[rows, width]` that keys and values read, by the number of their layer and whether it is extended."""
    read = {(layer.text_layer, layer.extended) for layer in layers}
    chosen_ids = torch.tensor(
        [
            *(base.tokenizer.eos_token_id, *base.tokenizer(words, add_special_tokens=False).input_ids),
            *(number for ids in base.vocabulary.ids.values() for number in ids),
        ]
    )
    for prompt in prompts:
        if every_position:
            states, ids = encode_prompts(base, [prompt])[0], None
        else:
            states, ids = unpadded_states(base, prompt)
        for number, rows in enumerate(states):
            if ids is not None:
                rows = rows[torch.isin(ids[number].cpu(), chosen_ids).to(rows.device)]
            for extended in (False, True):
                if (number, extended) in read:
                    yield (number, extended), rows


def unpadded_states(base: Base, prompt: str) -> tuple[Tensor, Tensor]:
    """States `[layers, tokens, width]` and ids `[layers, tokens]` of an unpadded prompt."""
    texts = _texts_per_layer(base, prompt)
    encoded, ids = text_states(base, texts, pad=False).states, prompt_ids(base, texts, pad=False)
    # A prompt without concept tokens is the same text in all layers.
    layers = base.topology.layers
    return encoded.expand(layers, *encoded.shape[1:]), ids.expand(layers, *ids.shape[1:])


@torch.no_grad()
def spatial_statistics(
    base: Base,
    layers: Sequence[Layer],
    prompts: Sequence[str],
    collection: Collection,
    every: slice = slice(None),
    advance: Callable[[int], object] | None = None,
) -> Statistics:
    """Inputs of UNet layers while pictures of the prompts are denoised, without guidance.

    Args:
        every: which of the prompts; start noise goes by a prompt's number among all.
        advance: as for `record`.
    """
    height, width = latent_size(base, collection.width, collection.height)
    numbers = range(len(prompts))[every]
    with _spatial_recorder(layers, collection) as recorder:
        for start in range(0, len(numbers), collection.batch_size):
            batch = numbers[start : start + collection.batch_size]
            seeds = [derived_seed(collection.seed, "statistics", number) for number in batch]
            scheduler = make_scheduler(base)
            scheduler.set_timesteps(collection.steps, device=base.device)
            states = prompt_states(base, [prompts[number] for number in batch])
            after = partial(_after_step, base, recorder, states, batch, collection.seed, advance)
            denoise(base, scheduler, start_noise(base, seeds, height, width), states, callback=after)
    return recorder.statistics()


def _after_step(
    base: Base,
    recorder: StatisticsRecorder | SensitivityRecorder,
    states: PromptStates,
    numbers: Sequence[int],
    seed: int,
    advance: Callable[[int], object] | None,
    step: Mapping[str, Any],
) -> None:
    """Record with gradients where they are wanted; the pictures' numbers and the step decide what is drawn."""
    if isinstance(recorder, SensitivityRecorder):
        noisy: Tensor = step["noisy"]
        signs = [
            torch.randint(2, noisy.shape[1:], generator=torch_generator(seed, "sensitivity", number, step["step"]))
            for number in numbers
        ]
        direction = (2 * torch.stack(signs) - 1).to(noisy.device, torch.float32)
        recorder.passed(base.unet, noisy, direction, step["timestep"], **states.to(noisy.dtype).for_unet(noisy))
    if advance is not None:
        advance(len(numbers))


def _spatial_recorder(layers: Sequence[Layer], collection: Collection) -> StatisticsRecorder | SensitivityRecorder:
    kind = SensitivityRecorder if collection.sensitive else StatisticsRecorder
    sampling = RowSampling(collection.moment_width, collection.kept_rows, collection.seed)
    return kind(_modules(layers), extended=_extended(layers), sampling=sampling)


def _modules(layers: Sequence[Layer]) -> dict[str, nn.Module]:
    return {layer.path: layer.module for layer in layers}


def _extended(layers: Sequence[Layer]) -> list[str]:
    return [layer.path for layer in layers if layer.extended]


def _texts_per_layer(base: Base, prompt: str) -> list[str]:
    """The prompt as every layer reads it; once when no concept token makes a difference."""
    layers = base.topology.layers if base.vocabulary.used_in(prompt) else 1
    return [base.vocabulary.bind(prompt, layer) for layer in range(layers)]


def _text_batches(base: Base, prompts: Sequence[str], padded: bool) -> Iterator[list[str]]:
    """All bindings; padded ones in batches over prompts."""
    waiting: list[str] = []
    for prompt in prompts:
        waiting += _texts_per_layer(base, prompt)
        if not padded or len(waiting) >= _TEXTS_AT_A_TIME:
            yield waiting
            waiting = []
    if waiting:
        yield waiting
