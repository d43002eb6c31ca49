"""Rank, alpha and learning rate by block of the UNet: from options to targets, and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from mixshow.config.train import NetworkOptions
from mixshow.core.errors import MixshowError
from mixshow.edlora.placement import placed_targets
from mixshow.evaluation.page import markdown_table
from mixshow.lycoris.blocks import BlockLayout, block_values, with_block_ranks
from mixshow.lycoris.naming import modules_by_file_name
from mixshow.lycoris.targets import Target


def block_targets(models: Mapping[str, nn.Module], names: Sequence[str], options: NetworkOptions) -> list[Target]:
    """Modules of the UNet with the rank and alpha of their blocks; those of blocks with rank or rate 0 are left out.

    Raises:
        MixshowError: another number of values than the base has blocks; nothing is left.
    """
    modules, blocks = modules_by_file_name(models), options.blocks
    targets = [Target(name, modules[name]) for name in names]
    if blocks is None:
        return targets
    layout = BlockLayout.of(models)
    for name in ("ranks", "alphas", "rates"):
        values = getattr(blocks, name)
        if values is not None and len(values) != layout.count:
            raise MixshowError(
                f"network.blocks.{name}: expected {layout.count} values, one per block of this base, found "
                f"{len(values)}"
            )
    try:
        return with_block_ranks(targets, layout, dims=blocks.ranks, alphas=options.block_alphas, rates=blocks.rates)
    except MixshowError as error:
        raise MixshowError(f"network.{error}") from error


def block_table(models: Mapping[str, nn.Module], options: NetworkOptions, rate: float) -> str:
    """The blocks with modules in the UNet's placement: how many are changed, at which rank, alpha and learning rate.

    Args:
        models: of the base; their shapes are enough.
        rate: learning rate that blocks multiply.

    Raises:
        MixshowError: as `block_targets`.
    """
    part = options.part("unet")
    if part is None or options.blocks is None:
        return ""
    layout = BlockLayout.of(models)
    names = placed_targets("unet", models["unet"], part.placement)
    chosen = {target.file_name: target for target in block_targets(models, names, options)}
    rates = block_values(1.0 if options.blocks.rates is None else options.blocks.rates, layout.count)
    rows: list[list[object]] = []
    for block in sorted({block for name in names if (block := layout.block_of(name)) is not None}):
        own = [chosen[name] for name in names if layout.block_of(name) == block and name in chosen]
        if not own:
            rows.append([block, layout.name_of(block), 0, "", "", ""])
            continue
        rank = own[0].options.get("dim", part.rank)
        alpha = own[0].options.get("alpha", part.alpha)
        rows.append([block, layout.name_of(block), len(own), rank, f"{alpha:g}", f"{rate * rates[block]:g}"])
    return markdown_table(["block", "SGM's name", "modules", "rank", "alpha", "learning rate"], rows)
