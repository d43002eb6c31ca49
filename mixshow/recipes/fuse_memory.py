"""Memory that a fusion needs beside its model, and whether there is as much, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from mixshow.config.fuse import FuseOptions
from mixshow.core.attachment import Attachment
from mixshow.core.progress import log
from mixshow.fusion.collect import CAPTIONS_SHARE, default_points
from mixshow.fusion.cost import solved_bytes
from mixshow.fusion.layers import Layer
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.memory import DISTILLING, IN_ORDER, RECORDING, distilling_bytes, fusion_memory
from mixshow.fusion.moving import learning_weight
from mixshow.fusion.own_and_fused import UNET, pictures_together, running_bytes, waiting_bytes
from mixshow.fusion.thin import ranks_of
from mixshow.models import Base
from mixshow.recipes.fuse_refine import distill_plan
from mixshow.recipes.memory import check_memory, total_memory
from mixshow.recipes.statistics import collection_for, kept_for_gradients, weighing_bytes
from mixshow.sampling.precision import Precision, autocast, resolve


def check_memory_of_distilling(base: Base, members: Sequence[Member], options: FuseOptions) -> None:
    """Say so where distilling needs more memory than is free, with the options that help.

    Raises:
        MixshowError: it needs more than there is in all.
    """
    if options.refine.method != "distill":
        return
    given = options.refine
    advice = ["use refine.method=none", "fuse on a machine with more"]
    if not options.distills_factors:
        advice.insert(0, "set refine.low_rank=true")
    if given.accumulation < given.batch_size:
        advice.insert(0, f"raise refine.accumulation, to {given.batch_size} at most")
    layers = [layer for stage in UNET for layer in changed_layers(base, members, stage)]
    check_memory(DISTILLING, memory_of_distilling(base, members, options, layers), base.device, ", or ".join(advice))


def memory_of_distilling(base: Base, members: Sequence[Member], options: FuseOptions, layers: Sequence[Layer]) -> int:
    """Bytes beside the model; one picture's pass is run.

    Args:
        layers: of the UNet that the members change.
    """
    plan, weights = distill_plan(options, 1), [learning_weight(layer.module) for layer in layers]
    if not weights:
        return 0
    with Attachment() as attachment, autocast(base.device, Precision.AUTO):
        for weight in weights:
            attachment.add(partial(weight.requires_grad_, weight.requires_grad))
            weight.requires_grad_(True)
        kept = kept_for_gradients(base, plan.width, plan.height)
    # Weights in a smaller number type are kept once, whatever the number of pictures.
    own = (
        0
        if resolve(Precision.AUTO, base.device) is Precision.FP32
        else 2 * sum(parameter.numel() for parameter in base.unet.parameters() if parameter.dim() > 1)
    )
    pictures = -(-plan.batch_size // plan.accumulation)
    return solved_bytes(layers, ranks_kept(base, members, options)) + distilling_bytes(
        sum(weight.numel() for weight in weights),
        own + pictures * max(kept - own, 0),
        factors=options.distills_factors,
        copied=any(weight.dtype != torch.float32 for weight in weights),
    )


def ranks_kept(base: Base, members: Sequence[Member], options: FuseOptions) -> dict[str, int]:
    """By module path, ranks of the solutions that stay factors."""
    return ranks_of(base, members) if options.solves_thin else {}


def points_that_fit(base: Base, members: Sequence[Member], options: FuseOptions) -> int:
    """How many points layers are solved on in sequence where options leave it open: as usual, or fewer.

    What they hold may take half of the memory that the device has beside the model, whatever is free of it now, so that
    a run that is done again is the same. Every concept has one at least.

    Raises:
        MixshowError: pictures of a size that the model cannot make.
    """
    size = options.statistics
    usual = default_points(base, size.width, size.height)
    collection = collection_for(options)
    one = waiting_bytes(base, collection, 1)
    passing = 2 * pictures_together(base, collection) * running_bytes(base, collection)
    parts = [*base.models.values(), base.vae]
    model = sum(parameter.nbytes for part in parts for parameter in part.parameters())
    left = max(0, total_memory(base.device) - model)
    fit = int((left / 2 - passing) / one / (1 + CAPTIONS_SHARE * (options.anchor.weight > 0)))
    if fit < usual and size.points is None and options.collects == "sequential":
        log.info("statistics.points: %d, as many as half of the memory beside the model holds", max(fit, len(members)))
    return max(min(fit, usual), len(members), 1)


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
        running=running_bytes(base, collection), together=pictures_together(base, collection),
        backward=weighing_bytes(base, collection) if collection.sensitive and recording else 0,
        ranks=ranks_kept(base, members, options),
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
    advice = "lower statistics.moment_width or statistics.kept_rows, or fuse on a machine with more"
    if what == IN_ORDER:
        advice = f"lower statistics.points, or {advice}"
    if what == RECORDING:
        advice = f"lower statistics.batch_size, or {advice}"
    if options.solver.objective != "squares":
        advice = f"lower statistics.rows, or {advice}"
    check_memory(what, needed[what], base.device, advice)
