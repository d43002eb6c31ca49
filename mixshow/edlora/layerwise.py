"""Layer-wise text states: each cross-attention layer of the UNet reads its own slice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mixshow.core.attachment import Attachment
from mixshow.models.topology import cross_attention_layers


def layerwise_states(unet: nn.Module) -> Attachment:
    """Let the UNet accept text states `[batch, layers, tokens, width]`: layer l attends to `states[:, l]`.

    Ordinary states `[batch, tokens, width]` pass unchanged. Works with any attention processor.

    Example:
        >>> with layerwise_states(unet):                                              # doctest: +SKIP
        ...     noise = unet(latents, timestep, encoder_hidden_states=states).sample
    """
    attachment = Attachment()
    for layer, path in enumerate(cross_attention_layers(unet)):
        module = unet.get_submodule(path)
        attachment.add_hook(module.register_forward_pre_hook(_choose(layer), with_kwargs=True))
    return attachment


def _choose(layer: int) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def choose(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        states = keywords.get("encoder_hidden_states")
        if states is not None and states.dim() == 4:
            keywords = {**keywords, "encoder_hidden_states": states[:, layer]}
        return arguments, keywords

    return choose
