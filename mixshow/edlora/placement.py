"""Which modules get a network: words for the usual choices, turned into module names."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.lycoris.naming import TEXT_ENCODERS, file_name

# Our word -> the class whose linear and convolutional parts get a network. The class names themselves, which
# published option files use, are accepted as the same.
PLACEMENTS = {
    "unet": {"attention": "Attention", "transformer": "Transformer2DModel"},
    "text_encoder": {"attention": "CLIPAttention", "layer": "CLIPEncoderLayer"},
}


def placement_word(model: str, name: str) -> str:
    """Our word for a placement given as a word or as a class name.

    Raises:
        MixshowError: no such placement for this model.
    """
    words = PLACEMENTS[model]
    by_class = {class_name: word for word, class_name in words.items()}
    if name not in words and name not in by_class:
        raise MixshowError(f"placement '{name}' of the {model}: unknown{did_you_mean(name, [*words, *by_class])}")
    return by_class.get(name, name)


def placed_targets(model: str, root: nn.Module, placement: str, models: Collection[str] = ()) -> list[str]:
    """File names of the modules of one model that a placement covers, in the model's order.

    Args:
        model: `unet`, `text_encoder` or `text_encoder_2`.
        placement: a word of `PLACEMENTS` or its class name.
        models: names of all models of the base; with two text encoders both are numbered.

    Raises:
        MixshowError: no such placement, or the model has no such modules.
    """
    words = "text_encoder" if model in TEXT_ENCODERS else model
    wanted = PLACEMENTS[words][placement_word(words, placement)]
    targets = [
        file_name(model, f"{outer}.{inner}", models)
        for outer, container in root.named_modules()
        if any(kind.__name__ == wanted for kind in type(container).__mro__)
        for inner, module in container.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    if not targets:
        raise MixshowError(f"placement '{placement}': the {model} of this base has no {wanted} modules")
    return list(dict.fromkeys(targets))
