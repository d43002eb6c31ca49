"""One concept's statistics in all stages, under its own fully tuned model; or the base's, on ordinary captions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from mixshow.fusion.collect import Collection, Statistics, record
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.members import Member
from mixshow.fusion.moments import refuse_no_numbers
from mixshow.fusion.prompts import filled
from mixshow.fusion.statistics import LayerInputs
from mixshow.models import Base


def record_all(
    base: Base,
    member: Member | None,
    layers: Sequence[Layer],
    collection: Collection,
    captions: Sequence[str] = (),
    every: slice = slice(None),
    advance: Callable[[int], object] | None = None,
) -> Statistics:
    """Statistics by module path.

    Args:
        member: whose; None: the base's own, on `captions`.
        every: which of the prompts.
        advance: called with the number of pictures after each of their denoising steps.

    Raises:
        MixshowError: what layers read is no number.
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
                tuned, own, stage, collection,
                text_prompts=text, picture_prompts=pictures, words=words, every=every, advance=advance,
            )  # fmt: skip
    for name, each in found.items():
        refuse_no_numbers(name, each)
    return found
