"""What every algorithm has in common: a subclass supplies parameters and its delta, the rest follows.

A delta has the shape of the module's weight. Adapters never own or change the module they adapt. Formed at least in
float32, a delta is never lost in a base of lower precision: it is rounded once, by itself, where it meets activations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.dropout import Dropouts
from mixshow.lycoris.kept import kept
from mixshow.lycoris.operation import module_operation, rebuilt_operation

__all__ = ["Algorithm", "computed_in", "module_operation", "precise", "read_alpha", "scale_tensor", "weight_of"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Algorithm(nn.Module, ABC):
    """A parametrised weight change of one linear, convolutional or normalising module.

    Attributes:
        dropouts: in training; set by the network.
    """

    name: ClassVar[str]  # as options spell it
    aliases: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, str]] = {}  # its own options, each with one line of help
    # Those of them that still act after training and that tensors do not tell, attributes of these names and keywords
    # of `from_tensors`. Files hold them as metadata.
    file_options: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self.dropouts = Dropouts()

    @classmethod
    @abstractmethod
    def claims(cls, names: Collection[str]) -> bool:
        """Whether one module's tensors in a file, by these names, are this algorithm's."""

    @classmethod
    @abstractmethod
    def create(cls, module: nn.Module, *, dim: int, alpha: float) -> Self:
        """Fresh parameters for a module, the delta being zero. Own options are further keywords with defaults.

        Args:
            dim: rank.
            alpha: the delta is scaled by alpha / rank.

        Raises:
            MixshowError: the module cannot be changed this way.
        """

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        """From a file's tensors (without the module's name in front); geometry follows from them alone.

        `file_options` are further keywords with defaults.

        Raises:
            MixshowError: the tensors do not fit the module.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors a file holds, in the order they are written."""

    def told_options(self) -> dict[str, float]:
        """The values of `file_options`, where they mean anything."""
        return {option: getattr(self, option) for option in self.file_options}

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """The change of a weight at multiplier 1, at least float32, in the weight's shape, differentiable."""

    def bias_delta(self) -> Tensor | None:
        """The change of the bias at multiplier 1, where there is one."""
        return None

    def weight_at(self, weight: Tensor, multiplier: float = 1.0) -> Tensor:
        """The changed weight, at least float32. Multiplier 0 gives the weight itself.

        Without a rule of its own, an algorithm's change is proportional to the multiplier.
        """
        delta = self.delta(weight)
        return weight.to(delta.dtype) + (delta if multiplier == 1 else multiplier * delta)

    def change_at(self, weight: Tensor, multiplier: float = 1.0) -> Tensor:
        """`weight_at` less the weight; exact where the change is proportional to the multiplier."""
        if type(self).weight_at is not Algorithm.weight_at:
            changed = self.weight_at(weight, multiplier)
            return changed - weight.to(changed.dtype)
        delta = self.delta(weight)
        return delta if multiplier == 1 else multiplier * delta

    def forward(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        """`forward_change` with, in training, the dropouts of the output."""
        change = self.forward_change(x, module, multiplier, base_output)
        return self.dropouts.on_output(change) if self.training else change

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        """What is added to the module's output for input `x`; in training with the rank dropout.

        Subclasses may override it with something cheaper, which must give the same. `prefers_weight` says where.

        Args:
            base_output: the module's own output where this network is the only one on it, None where it is not.
        """
        weight = weight_of(module)
        mask = self.rank_mask(weight.shape[0], weight)

        def change() -> Tensor:
            found = self.change_at(weight, multiplier)
            return found if mask is None else found * mask.reshape(-1, *[1] * (found.dim() - 1))

        bias = self.bias_delta()
        if bias is not None:
            bias = multiplier * bias if mask is None else multiplier * bias * mask
        return rebuilt_operation(module, computed_in(x), bias, change, [*self.parameters(), weight])

    def forward_whole(self, x: Tensor, module: nn.Module, multiplier: float) -> Tensor:
        """The changed module's output, from the changed weight in one operation, without dropouts."""
        weight, bias, change = weight_of(module), getattr(module, "bias", None), self.bias_delta()
        if change is not None:
            bias = multiplier * change + (0 if bias is None else bias.to(change.dtype))
        read = [*self.parameters(), weight]
        return rebuilt_operation(module, x, bias, lambda: self.weight_at(weight, multiplier), read)

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        """Whether `forward_whole` needs fewer operations than the module's own and `forward_change`.

        Args:
            positions: how often the weight is applied, see `output_positions`.
        """
        return type(self).forward_change is Algorithm.forward_change

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        """`(up [out, r], down [r, in])`, `up @ down` being the delta flattened to two axes, where such exist."""
        return None

    def scale_norm(self, max_norm: float, weight: Tensor) -> float:
        """Shrink the delta to a Frobenius norm of at most `max_norm`; returns the norm it then has.

        kohya's max-norm regularisation, with the scale counted once.
        """
        with torch.no_grad():
            norm = self.regularised_norm(weight)
            if norm > max_norm:
                self.shrink(max_norm / norm)
        return min(norm, max_norm)

    def regularised_norm(self, weight: Tensor) -> float:
        """The norm that `scale_norm` bounds: the delta's, without a magnitude's part."""
        return float(self.delta(weight).detach().norm())

    def shrink(self, ratio: float) -> None:
        """Multiply the delta by a ratio, through the parameters."""
        raise MixshowError(f"algorithm '{self.name}': has no norm to bound; leave the max-norm option out")

    @property
    def timed(self) -> bool:
        """Whether its forward depends on the diffusion time."""
        return False

    def set_timestep(self, timestep: int | Tensor | None, steps: int = 1000) -> None:
        """Tell an algorithm that depends on it the diffusion time of what comes next (None: any); most do not."""

    def rank_mask(self, ranks: int, like: Tensor) -> Tensor | None:
        """This call's rank dropout, `[ranks]` in float32 or wider; None: nothing is dropped."""
        if not self.training:
            return None
        return self.dropouts.rank_mask(ranks, torch.empty(0, dtype=precise(like), device=like.device))


def precise(*tensors: Tensor) -> torch.dtype:
    """The type to form a delta in: the widest of the tensors', at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def computed_in(x: Tensor) -> Tensor:
    """An input in the precision its module computes in: autocast's where that is on."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64:
        return x.to(torch.get_autocast_dtype(kind))
    return x


def weight_of(module: nn.Module) -> Tensor:
    """A module's own weight, without what networks have merged into it.

    Raises:
        MixshowError: it has none that can be changed: quantised, on the meta device, or without one.
    """
    before = kept(module)
    weight = getattr(module, "weight", None) if before is None else before[0]
    if not isinstance(weight, Tensor):
        raise MixshowError(f"expected a module with a weight, found {type(module).__name__}")
    if weight.is_meta:
        raise MixshowError(
            f"expected a {type(module).__name__} with a weight, found one on the meta device; load the model first"
        )
    if weight.dtype not in _FLOATS:
        raise MixshowError(
            f"expected a weight in float16, bfloat16, float32 or float64, found {weight.dtype}; networks cannot change "
            "quantised weights, load the model without quantisation"
        )
    return weight


def scale_tensor(alpha: float) -> Tensor:
    """The tensor of an alpha in files, 0-d float32."""
    return torch.tensor(float(alpha), dtype=torch.float32)


def read_alpha(tensors: Mapping[str, Tensor], rank: int) -> float:
    """The alpha of a module's tensors.

    Raises:
        MixshowError: it is missing or no number.
    """
    if "alpha" not in tensors:
        raise MixshowError(
            f"expected a tensor 'alpha', found {', '.join(tensors)}; without it the strength is unknown, add one "
            f"(programs that leave it out mean the rank, {rank})"
        )
    alpha = float(tensors["alpha"].flatten()[0])
    if not torch.isfinite(torch.tensor(alpha)):
        raise MixshowError(f"alpha: expected a number, found {alpha}; write the file again in float32")
    return alpha
