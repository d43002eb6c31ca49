"""Patterns for module paths and names for module classes, as presets use them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from torch import nn

from mixshow.core.errors import MixshowError

# Class names of other implementations of the same models, so that their presets mean the same here.
_SAME_CLASS = {
    "CrossAttention": "Attention",
    "SelfAttention": "Attention",
    "CLIPSdpaAttention": "CLIPAttention",
    "CLIPFlashAttention2": "CLIPAttention",
    "GroupNorm32": "GroupNorm",
}


class Patterns:
    """Patterns for module paths: equal, or matching from the start of the path.

    Args:
        patterns: regular expressions, matched as `re.match` does (the path may go on after the match), or shell
            patterns (`*`, `?`, `[...]`), which have to match the whole path.
        use_fnmatch: the patterns are shell patterns.

    Raises:
        MixshowError: one is no valid regular expression.
    """

    def __init__(self, patterns: Iterable[str], *, use_fnmatch: bool = False) -> None:
        self.texts = tuple(patterns)
        self._compiled = [_compiled(text, use_fnmatch) for text in self.texts]

    def first(self, paths: Sequence[str]) -> str | None:
        """The first pattern that fits one of a module's spellings; patterns equal to a spelling come before others."""
        equal = next((text for text in self.texts if text in paths), None)
        if equal is not None:
            return equal
        for text, pattern in zip(self.texts, self._compiled):
            if any(pattern.match(path) for path in paths):
                return text
        return None


def _compiled(text: str, use_fnmatch: bool) -> re.Pattern[str]:
    try:
        return re.compile(fnmatch.translate(text) if use_fnmatch else text)
    except re.error as error:
        raise MixshowError(
            f"pattern '{text}': not a regular expression ({error}); for * and ? set use_fnmatch = true"
        ) from error


def class_of(module: nn.Module, names: Iterable[str]) -> str | None:
    """The first of some class names that is the module's class, one it derives from, or the same under another name."""
    own = {kind.__name__ for kind in type(module).__mro__}
    return next((name for name in names if name in own or _SAME_CLASS.get(name) in own), None)


def adaptable(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution whose own forward is called.

    `nn.MultiheadAttention` reads the weight of its output layer and never calls it: a network there would do nothing.
    """
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def wide_kernel(module: nn.Module) -> bool:
    """Whether a module is a convolution with a kernel larger than one position."""
    return any(size != 1 for size in getattr(module, "kernel_size", ()))


def trainable_norm(module: nn.Module) -> bool:
    """Whether a module is a layer, group or root-mean-square normalisation with a weight."""
    return isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)) and module.weight is not None
