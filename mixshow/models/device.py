"""Devices by the names options give them."""

from __future__ import annotations

import torch

from mixshow.core.errors import MixshowError, first_line


def device_named(name: str) -> torch.device:
    """The device of a name: `auto` is an accelerator where there is one, otherwise the CPU.

    Raises:
        MixshowError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MixshowError(
            f"device: expected 'auto', 'cpu' or an accelerator of this machine, found '{name}' ({first_line(error)})"
        ) from error
    return device
