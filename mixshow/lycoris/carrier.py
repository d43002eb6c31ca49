"""What networks do to one module: the attached ones change its output, the merged ones its weight.

A network is attached by giving the module instance a `forward` of its own, in place of its class's; state dict, keys
and hooks stay as they are, and a compiled module notices. Several networks on one module add their changes of the
module's own weight, the one it has without merged networks; they never compound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import MethodType
from typing import Any, Self

import torch
from torch import Tensor, nn

from mixshow.lycoris.algorithm import Algorithm, precise
from mixshow.lycoris.kept import give_back, keep, kept
from mixshow.lycoris.operation import ADAPTABLE, output_positions

_ATTRIBUTE = "_mixshow_networks"
_PLAIN_FORWARDS = {kind.forward for kind in ADAPTABLE}  # type: ignore[attr-defined]


# What an attached change of a module's output counts by, given that output: a factor, or one that broadcasts to it.
Gate = Callable[[nn.Module, Tensor], "Tensor | float"]


@dataclasses.dataclass(eq=False)
class Strength:
    """What all modules of a network share.

    Attributes:
        multiplier: of attached changes; 0 leaves the base as it is.
        gate: what they count by besides, so that out = base + gate * (changed - base); None: in full. Merged changes
            have none.
        merged: the change is in the weights, so that attached modules add nothing.
    """

    multiplier: float = 1.0
    merged: bool = False
    gate: Gate | None = None


class Carrier:
    """The networks on one module. Made when the first arrives, gone with the last."""

    def __init__(self) -> None:
        self.attached: list[tuple[Algorithm, Strength]] = []
        self.merged: list[tuple[Algorithm, float]] = []
        self.own_forward: Callable[..., Tensor] | None = None  # what the instance had before, None: the class's

    def __deepcopy__(self, _: Any) -> Self:
        """A copied model keeps its networks: the same parameters, on the copy's modules."""
        copied = type(self)()
        copied.attached, copied.merged = list(self.attached), list(self.merged)
        copied.own_forward = self.own_forward
        return copied

    def run(self, module: nn.Module, *args: Any, **keywords: Any) -> Tensor:
        """The module's output, changed."""
        active = [(a, s) for a, s in self.attached if s.multiplier != 0 and not s.merged]
        if not active:
            return self._unchanged(module, *args, **keywords)
        x = args[0] if args else keywords["input"]
        alone = len(active) == 1 and self._is_plain(module) and kept(module) is None
        algorithm, strength = active[0]
        if alone and strength.gate is None and self._in_one_operation(module, x, algorithm, strength.multiplier):
            return algorithm.forward_whole(x, module, strength.multiplier)
        output = base = self._unchanged(module, *args, **keywords)
        for algorithm, strength in active:
            weight = 1.0 if strength.gate is None else strength.gate(module, base)
            if isinstance(weight, Tensor) or weight != 0:
                change = algorithm(x, module, strength.multiplier, base if alone else None).to(base.dtype)
                output = output + (change if isinstance(weight, float) and weight == 1 else weight * change)
        return output

    @staticmethod
    def _in_one_operation(module: nn.Module, x: Tensor, algorithm: Algorithm, multiplier: float) -> bool:
        """Whether to use the changed weight alone; never where the sum, in the weight's precision, loses the change."""
        weight: Any = module.weight
        return (
            not (algorithm.training and algorithm.dropouts.act)
            and weight.dtype == precise(weight) == x.dtype
            and not torch.is_autocast_enabled(x.device.type)
            and algorithm.prefers_weight(module, output_positions(module, x))
        )

    def _is_plain(self, module: nn.Module) -> bool:
        """Whether the module computes what its class does; other programs leave that method on the instance."""
        own = self.own_forward
        left = own is None or (getattr(own, "__self__", None) is module and own.__func__ is type(module).forward)  # type: ignore[attr-defined]
        return left and type(module).forward in _PLAIN_FORWARDS

    def _unchanged(self, module: nn.Module, *args: Any, **keywords: Any) -> Tensor:
        if self.own_forward is not None:
            return self.own_forward(*args, **keywords)
        return type(module).forward(module, *args, **keywords)

    def write(self, module: nn.Module) -> None:
        """Bring the module's weight and bias in line with what is merged; with nothing merged, the kept ones."""
        before = kept(module)
        if before is None:
            return
        if not self.merged:
            give_back(module)
            return
        parameters: Any = (module.weight, getattr(module, "bias", None))
        weight, bias = before
        with torch.no_grad():
            parameters[0].data = _changed(weight, [a.change_at(weight, m) for a, m in self.merged])
            if bias is not None:
                changes = [(a.bias_delta(), m) for a, m in self.merged]
                parameters[1].data = _changed(bias, [m * change for change, m in changes if change is not None])


def _changed(before: Tensor, changes: list[Tensor]) -> Tensor:
    """The sum, rounded once."""
    if not changes:
        return before
    total = before.to(precise(before, *changes))
    for change in changes:
        total = total + change
    return total.to(before.dtype)


def _forward(module: nn.Module, *args: Any, **keywords: Any) -> Tensor:
    return getattr(module, _ATTRIBUTE).run(module, *args, **keywords)


def carrier_of(module: nn.Module) -> Carrier | None:
    """The module's carrier, where a network is on it."""
    return module.__dict__.get(_ATTRIBUTE)


def own_weight(module: nn.Module) -> Tensor:
    """The module's weight without what is merged into it."""
    before = kept(module)
    weight = module.weight if before is None else before[0]
    assert isinstance(weight, Tensor)
    return weight.detach()


def attach(module: nn.Module, algorithm: Algorithm, strength: Strength) -> None:
    """Let an algorithm change a module's output."""
    carrier = _occupy(module)
    if not carrier.attached:
        carrier.own_forward = module.__dict__.get("forward")
        module.forward = MethodType(_forward, module)
    carrier.attached.append((algorithm, strength))


def detach(module: nn.Module, algorithm: Algorithm) -> None:
    """Undo `attach`."""
    carrier = carrier_of(module)
    if carrier is None:
        return
    carrier.attached = [entry for entry in carrier.attached if entry[0] is not algorithm]
    _leave(module, carrier)


def merge(module: nn.Module, algorithm: Algorithm, multiplier: float) -> None:
    """Put an algorithm's change into a module's weight and bias, keeping the tensors there were."""
    carrier = _occupy(module)
    keep(module)
    carrier.merged.append((algorithm, multiplier))
    carrier.write(module)


def unmerge(module: nn.Module, algorithm: Algorithm) -> None:
    """Undo `merge`; after the last one the very tensors there were are back."""
    carrier = carrier_of(module)
    if carrier is None:
        return
    carrier.merged = [entry for entry in carrier.merged if entry[0] is not algorithm]
    carrier.write(module)
    _leave(module, carrier)


def _occupy(module: nn.Module) -> Carrier:
    carrier = carrier_of(module)
    if carrier is None:
        carrier = Carrier()
        setattr(module, _ATTRIBUTE, carrier)
    return carrier


def _leave(module: nn.Module, carrier: Carrier) -> None:
    ours = module.__dict__.get("forward")
    if not carrier.attached and getattr(ours, "__func__", None) is _forward:
        del module.forward
        if carrier.own_forward is not None:
            module.forward = carrier.own_forward
    # Where something else has wrapped our forward since, the carrier stays behind, changing nothing.
    wrapped = "forward" in module.__dict__ and module.__dict__["forward"] is not carrier.own_forward
    if not carrier.attached and not carrier.merged and not wrapped:
        delattr(module, _ATTRIBUTE)
