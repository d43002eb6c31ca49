"""A network: algorithm instances attached to many modules of one or more models, with one multiplier."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.core.files import read_safetensors
from mixshow.lycoris.algorithm import Algorithm
from mixshow.lycoris.naming import modules_by_file_name
from mixshow.lycoris.registry import algorithm_named, algorithm_of


class Network(nn.Module):
    """Adapters by the file names of the modules they change.

    Attached through forward hooks: the base's modules, state dict and keys never change, several networks can be
    attached at once, and detaching leaves no trace. Use `with network:` or `attach()` / `detach()`.

    Attributes:
        adapters: the algorithm instances.
        multiplier: strength of the whole network; 0 is the base itself.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], adapters: Mapping[str, Algorithm], multiplier: float = 1.0
    ) -> None:
        super().__init__()
        self._registered = nn.ModuleDict(dict(adapters))
        self.adapters: dict[str, Algorithm] = dict(adapters)
        self.multiplier = multiplier
        modules = modules_by_file_name(models)
        # In a plain dict, so that the base's modules do not become children of this module.
        self._targets = {"modules": {name: modules[name] for name in adapters}}
        self._attachment: Attachment | None = None

    @property
    def targets(self) -> dict[str, nn.Module]:
        """The adapted modules by file name."""
        return self._targets["modules"]

    def attach(self) -> Self:
        """Make the models behave as changed by this network, until `detach()`."""
        if self._attachment is None:
            self._attachment = Attachment()
            for name, adapter in self.adapters.items():
                self._attachment.add_hook(self.targets[name].register_forward_hook(self._hook(adapter)))
        return self

    def detach(self) -> None:
        """Take the network off; a second call does nothing."""
        if self._attachment is not None:
            self._attachment.detach()
            self._attachment = None

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _hook(self, adapter: Algorithm) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add_change(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.multiplier == 0:
                return output
            change = adapter.apply(arguments[0], module)
            return output + (change if self.multiplier == 1 else self.multiplier * change).to(output.dtype)

        return add_change

    def deltas(self) -> Iterator[tuple[str, Tensor]]:
        """`(file name, delta)` of every adapter, without the multiplier, one at a time."""
        for name, adapter in self.adapters.items():
            yield name, adapter.delta()

    def file_tensors(self) -> dict[str, Tensor]:
        """The tensors of a network file, keys `<file name>.<tensor>`."""
        return {
            f"{name}.{key}": tensor.detach() for name, a in self.adapters.items() for key, tensor in a.tensors().items()
        }

    def parameters_of(self, prefix: str) -> list[nn.Parameter]:
        """Parameters of the adapters whose file names start with a prefix (`lora_te`, `lora_unet`)."""
        return [p for name, adapter in self.adapters.items() if name.startswith(prefix) for p in adapter.parameters()]


def create_network(
    models: Mapping[str, nn.Module],
    *,
    algo: str = "locon",
    targets: Iterable[str],
    dim: int = 4,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> Network:
    """A fresh network whose deltas are zero.

    Args:
        models: by the names `unet`, `text_encoder`.
        targets: file names of the modules to change (see `edlora.placement`).
        dim: rank.
        alpha: the change is scaled by alpha / dim; None: alpha = dim.
        generator: draws the first values; None uses torch's own.

    Raises:
        MixshowError: unknown algorithm.
    """
    algorithm = algorithm_named(algo)
    modules = modules_by_file_name(models)
    with torch.random.fork_rng(devices=[]):
        if generator is not None:
            torch.manual_seed(generator.initial_seed())
        adapters = {
            name: algorithm.create(modules[name], dim=dim, alpha=dim if alpha is None else alpha).to(
                modules[name].weight.device  # type: ignore[arg-type]
            )
            for name in targets
        }
    return Network(models, adapters)


def load_network(
    models: Mapping[str, nn.Module], source: Path | str | Mapping[str, Tensor], *, multiplier: float = 1.0
) -> Network:
    """A network from a file or its tensors; algorithm, ranks and geometry come from the tensors.

    Raises:
        MixshowError: a key names no module of the models, tensors of an unknown algorithm, or of other widths.
    """
    tensors = source if isinstance(source, Mapping) else read_safetensors(source)[0]
    grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        grouped[name][part] = tensor
    modules = modules_by_file_name(models)
    adapters = {}
    for name, parts in grouped.items():
        if name not in modules:
            raise MixshowError(f"network: '{name}' names no module of this base; the file was made for another one")
        algorithm = algorithm_of(parts)
        if algorithm is None:
            raise MixshowError(f"network: tensors {sorted(parts)} of '{name}' belong to no known algorithm")
        try:
            adapters[name] = algorithm.from_tensors(parts, modules[name]).to(modules[name].weight.device)  # type: ignore[arg-type]
        except (MixshowError, KeyError) as error:
            raise MixshowError(f"network: '{name}': {error}") from error
    return Network(models, adapters, multiplier)
