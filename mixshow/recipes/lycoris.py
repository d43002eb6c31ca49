"""`mixshow lycoris`: the algorithms, their options, and what a preset would change in a model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
import yaml
from torch import nn

from mixshow.core.errors import MixshowError, first_line
from mixshow.evaluation.page import markdown_table
from mixshow.lycoris import create_network
from mixshow.lycoris.blocks import BlockLayout
from mixshow.lycoris.dropout import DROPOUT_OPTIONS
from mixshow.lycoris.matching import trainable_norm, wide_kernel
from mixshow.lycoris.naming import prefix_of
from mixshow.lycoris.presets import PRESETS, select_targets
from mixshow.lycoris.registry import ALGORITHMS, algorithm_named, checked_options
from mixshow.lycoris.targets import Preset, Target
from mixshow.models.base import BUILT_IN, built_in_folder, source_problem
from mixshow.models.checkpoint import checkpoint_outline

_TEXT_ENCODERS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}


def overview() -> str:
    """The algorithms and the presets, one line each."""
    algorithms = [[name, ", ".join(kind.aliases), _first_line(kind.__doc__)] for name, kind in ALGORITHMS.items()]
    presets = [[name, ", ".join(_selects(preset))] for name, preset in PRESETS.items()]
    return "\n\n".join(
        (
            markdown_table(["algorithm", "also called", "what it is"], algorithms),
            markdown_table(["preset", "selects"], presets),
        )
    )


def description(algo: str) -> str:
    """What an algorithm does, with its options, their defaults and meanings.

    Raises:
        MixshowError: no such algorithm.
    """
    kind = algorithm_named(algo)
    defaults = {name: parameter.default for name, parameter in inspect.signature(kind.create).parameters.items()}
    about = inspect.getdoc(inspect.getmodule(kind)) or ""
    rows = [[name, defaults.get(name, ""), text] for name, text in kind.options.items()]
    dropouts = [[name, False if name.endswith("scale") else 0.0, text] for name, text in DROPOUT_OPTIONS.items()]
    title = f"{kind.name}" + (f" (also {', '.join(kind.aliases)})" if kind.aliases else "")
    return f"{title}\n\n{about}\n\n{markdown_table(['option', 'default', 'meaning'], [*rows, *dropouts])}"


def match(
    source: str | Path,
    *,
    preset: str = "full",
    algo: str = "locon",
    dim: int = 8,
    conv_dim: int | None = None,
    train_norm: bool = False,
    options: Sequence[str] = (),
    names: bool = False,
    blocks: bool = False,
) -> str:
    """What a preset would change in a model: modules, their weights, and the parameters of a network on them.

    Args:
        source: `"puppets"`, a diffusers folder, a hub id or a single file; only shapes are read.
        options: `key=value` texts, options of the algorithm.
        names: list every module instead of sums.
        blocks: sums over the blocks of the UNet, as options for single blocks count them.

    Raises:
        MixshowError: no such model, preset, algorithm or option; the preset matches nothing; a UNet without blocks.
    """
    kind = algorithm_named(algo)
    settings = checked_options(kind, _parsed(options))
    models = outline(source)
    sizes = dim, dim if conv_dim is None else conv_dim
    targets = [
        target
        for target in select_targets(models, preset, train_norm=train_norm)
        if target.options.get("dim", sizes[wide_kernel(target.module)])
    ]
    counted = list(zip(targets, _parameter_counts(targets, kind.name, sizes, settings)))
    if names:
        rows = [
            [target.file_name, _shape(target.module), algorithm_named(target.algo or kind.name).name, parameters]
            for target, parameters in counted
        ]
        return markdown_table(["module", "weight", "algorithm", "parameters"], rows)
    if blocks:
        return markdown_table(["block", "SGM's name", *_HEADER[2:]], list(_sums_by_block(models, counted)))
    return markdown_table(_HEADER, list(_sums(models, counted, kind.name)))


_HEADER = ["model", "algorithm", "modules", "linear", "1x1", "kxk", "norm", "weights", "parameters", "share"]


def _sums(models: Mapping[str, nn.Module], counted: Sequence[tuple[Target, int]], algo: str) -> Iterator[list[object]]:
    """One row per model and algorithm, and one of everything."""
    groups: dict[tuple[str, str], list[tuple[Target, int]]] = {}
    for model in models:
        prefix = prefix_of(model, models) + "_"
        for target, parameters in counted:
            if target.file_name.startswith(prefix):
                name = algorithm_named(target.algo or algo).name
                groups.setdefault((model, name), []).append((target, parameters))
    for (model, name), members in groups.items():
        yield [model, name, *_row(members)]
    yield ["all", "", *_row(counted)]


def _sums_by_block(models: Mapping[str, nn.Module], counted: Sequence[tuple[Target, int]]) -> Iterator[list[object]]:
    """One row per block of the UNet, one of what lies in none, and one of everything."""
    layout = BlockLayout.of(models)
    groups: dict[int | None, list[tuple[Target, int]]] = {}
    for target, parameters in counted:
        groups.setdefault(layout.block_of(target.file_name), []).append((target, parameters))
    outside = groups.pop(None, [])
    for block in sorted(number for number in groups if number is not None):
        yield [block, layout.name_of(block), *_row(groups[block])]
    if outside:
        yield ["none", "", *_row(outside)]
    yield ["all", "", *_row(counted)]


def _row(members: Sequence[tuple[Target, int]]) -> list[object]:
    kinds = [_kind(target.module) for target, _ in members]
    weights = sum(target.module.get_parameter("weight").numel() for target, _ in members)
    parameters = sum(count for _, count in members)
    counts = [kinds.count(kind) for kind in ("linear", "1x1", "kxk", "norm")]
    return [len(members), *counts, f"{weights:,}", f"{parameters:,}", f"{parameters / weights:.2%}"]


def outline(source: str | Path) -> dict[str, nn.Module]:
    """A base's text encoders and UNet without weights (on the meta device), by their names in a base.

    Raises:
        MixshowError: there is no such base, or its configuration cannot be read.
    """
    problem = source_problem(source)
    if problem:
        raise MixshowError(f"model: {problem}")
    place = str(built_in_folder() if str(source) == BUILT_IN else Path(source).expanduser())
    if Path(place).is_file():
        return checkpoint_outline(Path(place))
    place = place if Path(place).is_dir() else str(source)
    models: dict[str, nn.Module] = {}
    try:
        parts = diffusers.DiffusionPipeline.load_config(place)
        with torch.device("meta"):
            for name, kind in _TEXT_ENCODERS.items():
                if (parts.get(name) or (None, None))[1] is None:
                    continue
                config = transformers.CLIPTextConfig.from_pretrained(place, subfolder=name)
                models[name] = getattr(transformers, kind)(config)
            unet = diffusers.UNet2DConditionModel
            models["unet"] = unet.from_config(unet.load_config(place, subfolder="unet"))
    except Exception as error:  # the hub, json and the model classes each raise their own kinds
        raise MixshowError(f"model '{source}': its shape cannot be read ({first_line(error)})") from error
    return models


def _parameter_counts(
    targets: Sequence[Target], algo: str, sizes: tuple[int, int], settings: Mapping[str, Any]
) -> Iterator[int]:
    """How many parameters a fresh network has on each target, found by making one on zeros of that shape."""
    known: dict[tuple[object, ...], int] = {}
    for target in targets:
        module, special = target.module, dict(target.options)
        biased = getattr(module, "bias", None) is not None
        key = (_shape(module), _kind(module), biased, target.algo, str(sorted(special.items())))
        if key not in known:
            dim = special.pop("dim", sizes[wide_kernel(module)])
            chosen = algorithm_named(target.algo or algo)
            shared = {name: value for name, value in settings.items() if name in chosen.options}
            holder = nn.ModuleDict({"layer": copy.deepcopy(module).to_empty(device="cpu")})
            for parameter in holder.parameters():
                nn.init.zeros_(parameter)
            try:
                network = create_network(
                    {"model": holder}, algo=chosen.name, targets=["lycoris_layer"], dim=dim, **{**shared, **special}
                )
            except MixshowError as error:
                raise MixshowError(str(error).replace("lycoris_layer", target.file_name)) from error
            known[key] = sum(parameter.numel() for parameter in network.parameters())
        yield known[key]


def _parsed(options: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in options:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise MixshowError(f"option '{text}': expected key=value, for example factor=8")
        found[name] = yaml.safe_load(value)
    return found


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    if trainable_norm(module):
        return "norm"
    return "kxk" if wide_kernel(module) else "1x1"


def _shape(module: nn.Module) -> str:
    return " x ".join(str(size) for size in module.get_parameter("weight").shape)


def _selects(preset: Preset) -> Iterator[str]:
    """A preset in words."""
    yield "UNet: " + " ".join((*preset.unet_target_module, *preset.unet_target_name))
    text = (*preset.text_encoder_target_module, *preset.text_encoder_target_name)
    yield "text encoder: " + (" ".join(text) or "nothing")
    if not preset.enable_conv:
        yield "no kernels larger than 1"


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if text else ""
