"""What a preset is and what it selects: modules, each with an algorithm and options of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.lycoris.matching import Patterns, adaptable, class_of, trainable_norm, wide_kernel
from mixshow.lycoris.naming import canonical_path, file_name

Options = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Preset:
    """Classes and names that select modules. A class selects every linear layer and convolution inside; a name only
    what it fits (see `Patterns`; text encoder paths are tried with and without `text_model.`).

    Attributes:
        name: for messages.
        enable_conv: whether convolutions with a kernel larger than 1 take part; 1x1 ones count as linear layers.
        unet_target_module: classes selected in the UNet; `text_encoder_...` in every text encoder, plain
            `target_module` in models of other names. `..._target_name` likewise.
        exclude_name: what fits stays out, with everything inside.
        module_algo_map: class -> `algo`, `dim`, `alpha` and that algorithm's options for what lies inside; an inner
            class replaces the options of an outer one and keeps its algorithm unless it names another.
        name_algo_map: pattern -> the same, for whatever fits; goes before the classes.
        use_fnmatch: names are shell patterns instead of regular expressions.
    """

    name: str = "preset"
    enable_conv: bool = True
    unet_target_module: tuple[str, ...] = ()
    unet_target_name: tuple[str, ...] = ()
    text_encoder_target_module: tuple[str, ...] = ()
    text_encoder_target_name: tuple[str, ...] = ()
    target_module: tuple[str, ...] = ()
    target_name: tuple[str, ...] = ()
    exclude_name: tuple[str, ...] = ()
    module_algo_map: Mapping[str, Options] = dataclasses.field(default_factory=dict)
    name_algo_map: Mapping[str, Options] = dataclasses.field(default_factory=dict)
    use_fnmatch: bool = False

    def classes(self, model: str) -> tuple[str, ...]:
        """The classes selected in a model."""
        if model == "unet":
            return self.unet_target_module
        if model.startswith("text_encoder"):
            return self.text_encoder_target_module
        return (*self.target_module, *self.module_algo_map)

    def names(self, model: str) -> tuple[str, ...]:
        """The name patterns selected in a model."""
        if model == "unet":
            return self.unet_target_name
        if model.startswith("text_encoder"):
            return self.text_encoder_target_name
        return (*self.target_name, *self.name_algo_map)


@dataclasses.dataclass(frozen=True)
class Target:
    """A module that gets a network.

    Attributes:
        file_name: its name in network files.
        module: the module itself.
        algo: its algorithm; None: the network's.
        options: `dim`, `alpha` and the algorithm's own options that differ from the network's.
    """

    file_name: str
    module: nn.Module
    algo: str | None = None
    options: Options = dataclasses.field(default_factory=dict)


def select(
    models: Mapping[str, nn.Module], preset: Preset, *, train_norm: bool = False, used: set[str] | None = None
) -> list[Target]:
    """See `presets.select_targets`; the patterns that fit something are added to `used`."""
    used = set() if used is None else used
    targets: list[Target] = []
    for model, root in models.items():
        found = list(_Selection(model, models, preset, train_norm, used).walk(root))
        wanted = (*preset.classes(model), *preset.names(model))
        if not found and wanted:
            raise MixshowError(_nothing_found(model, root, preset, wanted))
        targets += found
    if not targets:
        raise MixshowError(f"preset '{preset.name}': has no classes or names for {', '.join(models) or 'no models'}")
    return targets


class _Selection:
    """One walk over one model."""

    def __init__(
        self, model: str, models: Mapping[str, nn.Module], preset: Preset, train_norm: bool, used: set[str]
    ) -> None:
        self.model, self.models, self.preset, self.train_norm, self.used = model, models, preset, train_norm, used
        self.seen: set[int] = set()  # a module that is used in two places is named after the first
        self.classes = preset.classes(model)
        self.names = Patterns(preset.names(model), use_fnmatch=preset.use_fnmatch)
        self.excluded = Patterns(preset.exclude_name, use_fnmatch=preset.use_fnmatch)
        self.maps = Patterns(preset.name_algo_map, use_fnmatch=preset.use_fnmatch)

    def walk(
        self, module: nn.Module, path: str = "", inside: bool = False, by_class: Options = MappingProxyType({})
    ) -> Iterator[Target]:
        """The targets in and below a module.

        Args:
            inside: a class selects this module's surroundings.
            by_class: what the class map says of them.
        """
        if id(module) in self.seen:
            return
        self.seen.add(id(module))
        if path:
            spellings = (path, canonical_path(self.model, path))
            if self._noted(self.excluded.first(spellings)):
                return
            inside = self._noted(class_of(module, self.classes)) is not None or inside
            mapped = self._noted(class_of(module, self.preset.module_algo_map))
            if mapped is not None:
                kept = {"algo": by_class["algo"]} if "algo" in by_class else {}
                by_class = {**kept, **self.preset.module_algo_map[mapped]}
            yield from self._target(module, path, spellings, inside, by_class)
        for name, child in module.named_children():
            yield from self.walk(child, f"{path}.{name}" if path else name, inside, by_class)

    def _target(
        self, module: nn.Module, path: str, spellings: tuple[str, str], inside: bool, by_class: Options
    ) -> Iterator[Target]:
        norm = trainable_norm(module)
        if not norm and not adaptable(module):
            return
        named = self._noted(self.names.first(spellings)) is not None
        if not (inside or named) or (norm and not self.train_norm):
            return
        if not self.preset.enable_conv and wide_kernel(module):
            return
        name = file_name(self.model, path, self.models)
        if norm:
            yield Target(name, module, "norm")
            return
        mapped = self._noted(self.maps.first(spellings))
        options = dict(by_class if mapped is None else self.preset.name_algo_map[mapped])
        yield Target(name, module, options.pop("algo", None), options)

    def _noted(self, pattern: str | None) -> str | None:
        if pattern is not None:
            self.used.add(pattern)
        return pattern


def _nothing_found(model: str, root: nn.Module, preset: Preset, wanted: tuple[str, ...]) -> str:
    known = {type(module).__name__ for module in root.modules()} | {path for path, _ in root.named_modules() if path}
    close = next((hint for text in wanted if "did you mean" in (hint := did_you_mean(text, known))), "")
    return (
        f"preset '{preset.name}': matches nothing in the {model}; looked for {', '.join(wanted)}{close or '; '}"
        f"{'' if close else 'see `mixshow lycoris match` for what a preset matches'}"
    )
