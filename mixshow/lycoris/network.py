"""A network: algorithm instances on many modules of one or more models, with one multiplier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.core.files import Metadata
from mixshow.core.progress import log
from mixshow.lycoris import carrier
from mixshow.lycoris.algorithm import Algorithm
from mixshow.lycoris.carrier import Gate, Strength
from mixshow.lycoris.files import write_network_file
from mixshow.lycoris.metadata import network_metadata
from mixshow.lycoris.naming import modules_by_file_name
from mixshow.lycoris.timesteps import tell_timesteps


class Network(nn.Module):
    """Adapters by the file names of the modules they change.

    The base's modules, state dict and keys never change, several networks can be attached at once, and detaching
    leaves no trace. Use `with network:` or `attach()` / `detach()`; `merge()` puts the change into the weights instead.

    Attributes:
        adapters: the algorithm instances.
        num_train_timesteps: length of the models' noise schedule. Once it is known, a model whose forward takes a
            `timestep` tells its adapters the time of every forward while the network is attached; None: they are told
            by `set_timestep` alone.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], adapters: Mapping[str, Algorithm], multiplier: float = 1.0
    ) -> None:
        super().__init__()
        self._registered = nn.ModuleDict(dict(adapters))
        self.adapters: dict[str, Algorithm] = dict(adapters)
        # Plain dicts, so that the base's modules do not become children of this module.
        self.models: dict[str, nn.Module] = dict(models)
        modules = modules_by_file_name(models)
        self.targets: dict[str, nn.Module] = {name: modules[name] for name in adapters}
        self.num_train_timesteps: int | None = None
        self._strength = Strength(float(multiplier))
        self._attachment: Attachment | None = None
        self._merging: Attachment | None = None

    @property
    def multiplier(self) -> float:
        """Strength of the whole network; 0 is the base itself.

        Raises:
            MixshowError: set while the network is merged.
        """
        return self._strength.multiplier

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        if self.merged and value != self.multiplier:
            raise MixshowError(
                f"the network is merged with multiplier {self.multiplier:g}; unmerge() it before setting {value:g}"
            )
        self._strength.multiplier = float(value)

    @property
    def gate(self) -> Gate | None:
        """What attached changes of outputs count by besides the multiplier; see `carrier.Strength`."""
        return self._strength.gate

    @gate.setter
    def gate(self, value: Gate | None) -> None:
        self._strength.gate = value

    @property
    def attached(self) -> bool:
        """Whether the models behave as changed."""
        return self._attachment is not None

    @property
    def merged(self) -> bool:
        """Whether the change is in the models' weights."""
        return self._merging is not None

    def attach(self) -> Self:
        """Make the models behave as changed by this network, until `detach()`. A merged network adds nothing more."""
        if self._attachment is None:
            attachment = self._on_every_module(
                lambda module, adapter: carrier.attach(module, adapter, self._strength), carrier.detach
            )
            try:
                for model in self.models.values():
                    timed = [adapter for adapter in self._adapters_in(model) if adapter.timed]
                    attachment.add(tell_timesteps(model, timed, lambda: self.num_train_timesteps).detach)
            except BaseException:
                attachment.detach()
                raise
            self._attachment = attachment
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

    def merge(self) -> Self:
        """Put the change, at the multiplier, into the models' weights, until `unmerge()`; a second call does nothing.

        The sum is rounded once to the weights' type, which in 16 bits loses part of a small change; attached, nothing
        is lost. Weights know no time: where ranks depend on it, all of them are merged. The weights there were are kept
        aside.
        """
        if self._merging is None:
            kinds = {carrier.own_weight(module).dtype for module in self.targets.values()}
            for name in sorted(str(kind) for kind in kinds if torch.finfo(kind).bits < 32):
                log.info(
                    "merged into %s weights: the sum is rounded to their precision; attached networks lose nothing",
                    name.removeprefix("torch."),
                )
            if any(adapter.timed for adapter in self.adapters.values()):
                log.info("merged with all ranks; which of them act at which time, only attached networks follow")
            self._merging = self._on_every_module(
                lambda module, adapter: carrier.merge(module, adapter, self.multiplier), carrier.unmerge
            )
            self._strength.merged = True
        return self

    def unmerge(self) -> None:
        """Take the change out of the weights: the very bits there were are back. A second call does nothing."""
        if self._merging is not None:
            self._merging.detach()
            self._merging = None
            self._strength.merged = False

    def _on_every_module(
        self,
        do: Callable[[nn.Module, Algorithm], None],
        undo: Callable[[nn.Module, Algorithm], None],
    ) -> Attachment:
        attachment = Attachment()
        try:
            for name, adapter in self.adapters.items():
                attachment.add(partial(undo, self.targets[name], adapter))
                do(self.targets[name], adapter)
        except BaseException:
            attachment.detach()
            raise
        return attachment

    def parts(self) -> dict[str, Network]:
        """A network for each model that this one changes, by the models' names; of the very same adapters."""
        found = {}
        for name, model in self.models.items():
            inside = set(model.modules())
            adapters = {key: adapter for key, adapter in self.adapters.items() if self.targets[key] in inside}
            if adapters:
                found[name] = Network(self.models, adapters, self.multiplier)
                found[name].num_train_timesteps = self.num_train_timesteps
        return found

    def _adapters_in(self, model: nn.Module) -> Iterator[Algorithm]:
        inside = set(model.modules())
        yield from (adapter for name, adapter in self.adapters.items() if self.targets[name] in inside)

    def deltas(self) -> Iterator[tuple[str, Tensor]]:
        """`(file name, delta)` of every adapter, without the multiplier, one at a time."""
        for name, adapter in self.adapters.items():
            yield name, adapter.delta(carrier.own_weight(self.targets[name]))

    def file_tensors(self) -> dict[str, Tensor]:
        """The tensors of a network file, keys `<file name>.<tensor>`."""
        return {
            f"{name}.{key}": tensor.detach() for name, a in self.adapters.items() for key, tensor in a.tensors().items()
        }

    def file_options(self) -> dict[str, Any]:
        """Options that still act and that tensors do not tell, for a file's metadata.

        Returns:
            One value each; by file name where adapters differ.
        """
        told = {name: adapter.told_options() for name, adapter in self.adapters.items()}
        found: dict[str, Any] = {}
        for option in sorted({option for options in told.values() for option in options}):
            values = {name: options[option] for name, options in told.items() if option in options}
            asked = sum(option in adapter.file_options for adapter in self.adapters.values())
            same = len(values) == asked and len(set(values.values())) == 1
            found[option] = next(iter(values.values())) if same else values
        return found

    def save(self, path: Path | str, metadata: Metadata | None = None) -> None:
        """Write a network file as kohya's programs and LyCORIS read it, with `ss_...` metadata and hashes.

        Args:
            metadata: further entries, or others in place of those every file has.

        Raises:
            MixshowError: the disk is full or the place cannot be written.
        """
        kinds = sorted({adapter.name for adapter in self.adapters.values()})
        usual = network_metadata(self.models, algo=",".join(kinds), options=self.file_options())
        write_network_file(path, self.file_tensors(), {**usual, **(metadata or {})})

    def parameters_of(self, prefix: str) -> list[nn.Parameter]:
        """Parameters of the adapters whose file names start with a prefix (`lora_te`, `lora_unet`)."""
        return [p for name, adapter in self.adapters.items() if name.startswith(prefix) for p in adapter.parameters()]

    def scale_norms(self, max_norm: float) -> tuple[int, float, float]:
        """Shrink every delta whose norm is above a limit (max-norm regularisation); call it after optimizer steps.

        Returns:
            how many were shrunk, and the mean and the largest norm afterwards.
        """
        norms = [a.scale_norm(max_norm, carrier.own_weight(self.targets[name])) for name, a in self.adapters.items()]
        return sum(norm >= max_norm for norm in norms), sum(norms) / max(len(norms), 1), max(norms, default=0.0)

    def set_timestep(self, timestep: int | Tensor | None, steps: int = 1000) -> None:
        """Tell the algorithms that depend on it the diffusion time of what comes next, all of them.

        An attached network whose `num_train_timesteps` is set is told by the UNet itself, before every forward.

        Args:
            timestep: one number, or one per picture `[batch]`; None: no particular one.
            steps: how many time steps the noise schedule has.
        """
        for adapter in self.adapters.values():
            adapter.set_timestep(timestep, steps)
