"""A module's own weight and bias, set aside while networks are merged into them.

All that is merged into a module shares one pair. Whatever reads the module's weight for a network, attached, merged or
in the making, reads these: networks act on the base, never on each other.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

_ATTRIBUTE = "_mixshow_kept"

Kept = tuple[Tensor, Tensor | None]


def kept(module: nn.Module) -> Kept | None:
    """Weight and bias from before the first merge; None: nothing is merged.

    Where the model has been moved or converted since, they are too.
    """
    found: Kept | None = getattr(module, _ATTRIBUTE, None)
    if found is None:
        return None
    now: Any = module.weight
    if (found[0].dtype, found[0].device) != (now.dtype, now.device):
        found = found[0].to(now), None if found[1] is None else found[1].to(now)
        setattr(module, _ATTRIBUTE, found)
    return found


def keep(module: nn.Module) -> None:
    """Set weight and bias aside, unless they are already."""
    if kept(module) is None:
        parameters: Any = (module.weight, getattr(module, "bias", None))
        setattr(module, _ATTRIBUTE, tuple(None if each is None else each.data for each in parameters))


def give_back(module: nn.Module) -> None:
    """Put the very tensors there were back."""
    before = kept(module)
    if before is not None:
        parameters: Any = (module.weight, getattr(module, "bias", None))
        for parameter, own in zip(parameters, before):
            if own is not None:
                parameter.data = own
        delattr(module, _ATTRIBUTE)
