"""Memory that a fusion needs beside its model, and what it collects for that."""

from __future__ import annotations

from collections.abc import Sequence

from mixshow.config.fuse import FuseOptions
from mixshow.fusion.layers import Layer
from mixshow.fusion.members import Member
from mixshow.fusion.memory import IN_ORDER, RECORDING, fusion_memory
from mixshow.fusion.own_and_fused import waiting_bytes
from mixshow.models import Base
from mixshow.recipes.memory import check_memory
from mixshow.recipes.statistics import collection_for, kept_for_gradients


def memory_needed(
    base: Base, members: Sequence[Member], options: FuseOptions, layers: Sequence[Layer], *, recording: bool
) -> dict[str, int]:
    """Bytes beside the model by what they are needed for.

    Args:
        layers: that the members change.
        recording: whether any statistics are recorded beforehand.
    """
    anchored = options.anchor.weight > 0 and options.method != "subspace"
    collection, count = collection_for(options), len(members)
    points = count * collection.share_of_points(count) + anchored * collection.share_of_points(count, captions=True)
    return fusion_memory(
        layers, collection, len(members), len(members) + anchored, recording=recording, kept=options.statistics.keep,
        again=options.refine.method == "rerecord", shrunk=options.statistics.shrinkage > 0,
        metrics=options.keeps_metrics, waiting=waiting_bytes(base, collection, points),
        backward=kept_for_gradients(base, collection) if collection.sensitive and recording else 0,
    )  # fmt: skip


def check_fusion_memory(
    base: Base, members: Sequence[Member], options: FuseOptions, layers: Sequence[Layer], *, recording: bool
) -> None:
    """Say so where a fusion needs more memory than is free, with the option that helps.

    Args:
        layers, recording: as for `memory_needed`.

    Raises:
        MixshowError: it needs more than there is in all.
    """
    needed = memory_needed(base, members, options, layers, recording=recording)
    what = max(needed, key=needed.__getitem__)
    advice = "fuse on a machine with more"
    if what == IN_ORDER:
        advice = f"lower statistics.points, or {advice}"
    if what == RECORDING and options.statistics.row_weights == "sensitivity":
        advice = f"lower statistics.batch_size, or {advice}"
    if options.solver.objective != "squares":
        advice = f"lower statistics.rows, or {advice}"
    check_memory(what, needed[what], base.device, advice)
