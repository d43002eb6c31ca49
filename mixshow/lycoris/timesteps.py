"""A model that tells the networks on it the diffusion time of every forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.lycoris.algorithm import Algorithm


def tell_timesteps(model: nn.Module, adapters: Sequence[Algorithm], steps: Callable[[], int | None]) -> Attachment:
    """Tell adapters the `timestep` that each forward of a model is given, until the handle is detached.

    The time stays set after the forward, for gradient checkpointing, which runs parts of it again.

    Args:
        model: one whose forward takes no `timestep`, such as a text encoder, tells nothing.
        steps: gives the length of the noise schedule; None: not known, nothing is told.
    """
    parameters = list(inspect.signature(model.forward).parameters) if adapters else []
    if "timestep" not in parameters:
        return Attachment()
    place = parameters.index("timestep")

    # A function, not a method: a copied model then tells the same adapters, instead of copies of them.
    def tell(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        length = steps()
        if length is None:
            return
        time = keywords["timestep"] if "timestep" in keywords else arguments[place]
        if isinstance(time, Tensor):  # fetched once from the device, not by every adapter
            time = time.detach().to("cpu", torch.float64)
        for adapter in adapters:
            adapter.set_timestep(time, length)

    def forget() -> None:
        for adapter in adapters:
            adapter.set_timestep(None)

    attachment = Attachment(forget)
    attachment.add_hook(model.register_forward_pre_hook(tell, with_kwargs=True))
    return attachment
