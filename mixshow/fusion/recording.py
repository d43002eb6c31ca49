"""One concept's statistics in all stages, under its own fully tuned model; or the base's, on ordinary captions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

from mixshow.fusion.collect import Collection, Statistics, record
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.members import Member
from mixshow.fusion.prompts import filled
from mixshow.fusion.solve import solving_bytes
from mixshow.fusion.statistics import LayerInputs, input_width, is_elementwise
from mixshow.lycoris.carrier import own_weight
from mixshow.models import Base

# Layers that read one tensor in all models known here: one moment serves them.
_TOGETHER = ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj")


def record_all(
    base: Base,
    member: Member | None,
    layers: Sequence[Layer],
    collection: Collection,
    captions: Sequence[str] = (),
    every: slice = slice(None),
) -> Statistics:
    """Statistics by module path.

    Args:
        member: whose; None: the base's own, on `captions`.
        every: which of the prompts.
    """
    found: dict[str, LayerInputs] = {}
    with contextlib.nullcontext(base) if member is None else member.in_place(base) as tuned:
        for stage in Stage:
            own = [layer for layer in layers if layer.stage is stage]
            if not own:
                continue
            if member is None:
                text = pictures = list(captions)
            else:
                text, pictures = (
                    filled(templates, member.concept.text)
                    for templates in (collection.text_prompts, collection.picture_prompts)
                )
            words = "" if member is None else member.concept.ordinary_words
            found |= record(
                tuned, own, stage, collection, text_prompts=text, picture_prompts=pictures, words=words, every=every
            )
    return found


def recording_bytes(layers: Iterable[Layer], collection: Collection) -> int:
    """Memory that recording takes beside the model: rows, or moments in float64 beside their latest products."""
    return sum(
        4 * width * collection.kept_rows if width > collection.moment_width else 16 * count * width**2
        for width, count in _widths(layers)
    )


def solving_memory(layers: Iterable[Layer], collection: Collection, sets: int) -> int:
    """Memory that solving takes, of as many sets of statistics."""
    rows = sets * collection.kept_rows
    moments = [count * width**2 for width, count in _widths(layers) if width <= collection.moment_width]
    reduced = [min(width, rows) * width for width, _ in _widths(layers) if width > collection.moment_width]
    return max(
        solving_bytes(moments, sets),
        8 * (sets + 5) * max(reduced, default=0),  # rows of all are at hand
    )


def _widths(layers: Iterable[Layer]) -> list[tuple[int, int]]:
    """Width and number of every moment; layers that read one tensor have one, normalisations one per channel."""
    found: dict[tuple[object, ...], tuple[int, int]] = {}
    for layer in layers:
        width = input_width(layer.module) + layer.extended
        count = own_weight(layer.module).numel() if is_elementwise(layer.module) else 1
        outer, _, name = layer.path.rpartition(".")
        found[(outer, layer.stage, width) if name in _TOGETHER else (layer.path,)] = width, count
    return list(found.values())
