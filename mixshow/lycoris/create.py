"""Fresh networks: which modules, which algorithm, which ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.lycoris.algorithm import Algorithm, weight_of
from mixshow.lycoris.dropout import DROPOUT_OPTIONS, Dropouts
from mixshow.lycoris.matching import adaptable, wide_kernel
from mixshow.lycoris.naming import modules_by_file_name
from mixshow.lycoris.network import Network
from mixshow.lycoris.presets import select_targets
from mixshow.lycoris.registry import algorithm_named, checked_options
from mixshow.lycoris.targets import Preset, Target


def create_network(
    models: Mapping[str, nn.Module],
    *,
    algo: str = "locon",
    preset: Preset | str | Path | Mapping[str, Any] | None = None,
    targets: Iterable[str | Target] | None = None,
    dim: int = 4,
    alpha: float | None = None,
    conv_dim: int | None = None,
    conv_alpha: float | None = None,
    train_norm: bool = False,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Network:
    """A fresh network whose deltas are zero, in training mode.

    Args:
        models: by the names `unet`, `text_encoder`, `text_encoder_2`; any other name for any other model.
        algo: an algorithm's name, see `registry`.
        preset: which modules, see `presets`.
        targets: file names of the modules instead, or targets with own ranks and options (`select_targets`,
            `with_block_ranks`). With neither, every linear layer and convolution.
        dim: rank.
        alpha: the change is scaled by alpha / dim; None: alpha = dim.
        conv_dim: rank for kernels larger than 1; None: `dim`; 0: such convolutions are left out.
        conv_alpha: their alpha; None: `alpha`, or `conv_dim` where that is None too.
        train_norm: change normalisation layers that the preset selects as well.
        generator: draws the first values; None uses torch's own.
        options: the algorithm's own and the dropouts, see `mixshow lycoris describe`.

    Raises:
        MixshowError: unknown algorithm, option or module; nothing matches; a module that cannot be changed this way.
            The models are left as they were.
    """
    kind = algorithm_named(algo)
    own = checked_options(kind, options)
    chosen = _targets(models, preset, targets, train_norm)
    sizes = (dim, alpha), (dim if conv_dim is None else conv_dim, alpha if conv_alpha is None else conv_alpha)
    adapters: dict[str, Algorithm] = {}
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        for target in chosen:
            target_dim, target_alpha = sizes[wide_kernel(target.module)]
            if not target_dim and "dim" not in target.options:
                continue
            adapters[target.file_name] = _adapter(target, kind, own, target_dim, target_alpha)
    if not adapters:
        raise MixshowError("network: nothing is left to change; conv_dim=0 leaves out all that was selected")
    return Network(models, adapters)


def _targets(
    models: Mapping[str, nn.Module], preset: Any, names: Iterable[str | Target] | None, train_norm: bool
) -> list[Target]:
    if preset is not None and names is not None:
        raise MixshowError("network: expected a preset or targets, found both; leave one out")
    if preset is not None:
        return list(select_targets(models, preset, train_norm=train_norm))
    modules = modules_by_file_name(models)
    if names is None:
        chosen = [Target(name, module) for name, module in modules.items() if adaptable(module)]
        if not chosen:
            raise MixshowError(f"network: {', '.join(models) or 'no model'} has no linear layer or convolution")
        return chosen
    chosen = []
    for name in names:
        if isinstance(name, Target):
            chosen.append(name)
            continue
        if name not in modules:
            raise MixshowError(f"network: target '{name}': no such module in these models{_close(name, modules)}")
        chosen.append(Target(name, modules[name]))
    if not chosen:
        raise MixshowError("network: expected at least one target, found none")
    return chosen


def _close(name: str, modules: Mapping[str, nn.Module]) -> str:
    hint = did_you_mean(name, modules)
    return hint if "did you mean" in hint else f"; they have {len(modules)}, such as '{next(iter(modules), '')}'"


def _adapter(target: Target, kind: type[Algorithm], own: Mapping[str, Any], dim: int, alpha: float | None) -> Algorithm:
    """One module's fresh algorithm: its own options before the network's, of those that its algorithm has."""
    try:
        special = dict(target.options)
        dim = int(special.pop("dim", dim))
        alpha = special.pop("alpha", alpha)
        if dim < 1:
            raise MixshowError(f"dim: expected at least 1, found {dim}")
        chosen = kind if target.algo is None else algorithm_named(target.algo)
        shared = {name: value for name, value in own.items() if name in chosen.options or name in DROPOUT_OPTIONS}
        settings = {**shared, **checked_options(chosen, special)}
        dropouts = Dropouts(**{name: settings.pop(name) for name in DROPOUT_OPTIONS if name in settings})
        weight = weight_of(target.module)
        adapter = chosen.create(target.module, dim=dim, alpha=float(alpha or dim), **settings)
        adapter.dropouts = dropouts
        return adapter.to(weight.device)
    except MixshowError as error:
        raise MixshowError(f"network: '{target.file_name}': {error}") from error
