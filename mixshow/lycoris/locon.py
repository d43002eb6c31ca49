"""LoRA and LoCon: a low-rank change `s * up @ down`, s = alpha / rank, for linear layers and convolutions.

Hu et al. 2021 (arXiv 2106.09685). Convolutions: the down part keeps the kernel, the up part is 1x1; with Tucker
(Hyeon-Woo et al. 2022, arXiv 2108.06098) both are 1x1 and a core of `rank x rank` channels has the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, precise, read_alpha, scale_tensor, weight_of
from mixshow.lycoris.layer import RANK_STABILISED, check_rank, fits, matrix_of
from mixshow.lycoris.low_rank import low_rank_change, weight_is_cheaper
from mixshow.lycoris.magnitude import MAGNITUDE_OPTIONS, Magnitude
from mixshow.lycoris.operation import module_operation, output_positions


class LoCon(Algorithm):
    """Low-rank change of a linear layer or a convolution, grouped or not."""

    name = "locon"
    aliases = ("lora",)
    options: ClassVar[Mapping[str, str]] = {
        "use_tucker": "kernels larger than 1 get a core of their own between 1x1 factors",
        "use_scalar": "train one more factor, from 0, in place of an up part that starts at 0",
        **RANK_STABILISED,
        **MAGNITUDE_OPTIONS,
    }

    def __init__(
        self,
        down: Tensor,
        up: Tensor,
        alpha: float,
        *,
        mid: Tensor | None = None,
        scalar: Tensor | None = None,
        magnitude: Magnitude | None = None,
    ) -> None:
        """
        Args:
            down: `[r, in, *kernel]`; Tucker: `[r, in, 1, ...]`.
            up: `[out, r, 1, ...]`.
            alpha: as files have it, so that the scale is alpha / r.
            mid: Tucker core `[r, r, *kernel]`.
            scalar: further trained factor; written into `up`.
        """
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.mid = None if mid is None else nn.Parameter(mid)
        self.scalar = None if scalar is None else nn.Parameter(scalar)
        self.magnitude = magnitude
        self.alpha = float(alpha)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return "lora_up.weight" in names or "lora_down.weight" in names

    @classmethod
    def create(
        cls,
        module: nn.Module,
        *,
        dim: int,
        alpha: float,
        use_tucker: bool = False,
        use_scalar: bool = False,
        rs_lora: bool = False,
        weight_decompose: bool = False,
        wd_on_out: bool = True,
    ) -> Self:
        weight = matrix_of(module)
        (out, inside), kernel = weight.shape[:2], weight.shape[2:]
        tucker = use_tucker and math.prod(kernel) > 1
        check_rank(weight, dim, min(out, inside if tucker else inside * math.prod(kernel)))
        points = [1] * len(kernel)
        down = torch.empty(dim, inside, *(points if tucker else kernel))
        mid = torch.empty(dim, dim, *kernel) if tucker else None
        up = torch.zeros(out, dim, *points)
        for factor in (down, mid, up if use_scalar else None):
            if factor is not None:
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        return cls(
            down,
            up,
            alpha * math.sqrt(dim) if rs_lora else alpha,
            mid=mid,
            scalar=torch.zeros(()) if use_scalar else None,
            magnitude=Magnitude.create(weight, on_output=wd_on_out) if weight_decompose else None,
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], module: nn.Module) -> Self:
        weight = matrix_of(module)
        down, up, mid = tensors["lora_down.weight"], tensors["lora_up.weight"], tensors.get("lora_mid.weight")
        rank, points = next(iter(down.shape), 0), (1,) * (weight.dim() - 2)
        shapes = (rank, *weight.shape[1:]), (weight.shape[0], rank, *points), (rank, rank, *weight.shape[2:])
        if mid is not None:
            shapes = (rank, weight.shape[1], *points), *shapes[1:]
        if not rank or not all(t is None or fits(t, shape) for t, shape in zip((down, up, mid), shapes)):
            core = "" if mid is None else f", mid {list(mid.shape)}"
            raise MixshowError(
                f"expected factors for a weight of shape {list(weight.shape)}, found up {list(up.shape)} and down "
                f"{list(down.shape)}{core}; the file was made for a base of other widths"
            )
        return cls(
            down.float().reshape(shapes[0]),  # some files store 1x1 convolutions as matrices
            up.float().reshape(shapes[1]),
            read_alpha(tensors, rank),
            mid=None if mid is None else mid.float().reshape(shapes[2]),
            magnitude=Magnitude.from_tensor(tensors["dora_scale"], weight) if "dora_scale" in tensors else None,
        )

    def tensors(self) -> dict[str, Tensor]:
        up = self.up if self.scalar is None else self.up * self.scalar
        found = {"alpha": scale_tensor(self.alpha), "lora_up.weight": up, "lora_down.weight": self.down}
        if self.magnitude is not None:
            found = {"dora_scale": self.magnitude.scale, **found}
        return found if self.mid is None else {**found, "lora_mid.weight": self.mid}

    def _scaled_up(self, mask: Tensor | None = None) -> Tensor:
        """The up part `[out, r]` with all scales, the rank dropout among them."""
        up = self.up.flatten(1).to(precise(self.up)) * self.scale
        up = up if self.scalar is None else up * self.scalar
        return up if mask is None else up * mask

    def _whole_down(self) -> Tensor:
        """The down part `[r, in, *kernel]`, the core in it."""
        if self.mid is None:
            return self.down.to(precise(self.down))
        dtype = precise(self.mid)
        return torch.einsum("ij...,jc->ic...", self.mid.to(dtype), self.down.flatten(1).to(dtype))

    def _additive(self) -> Tensor:
        down = self._whole_down()
        return (self._scaled_up() @ down.flatten(1)).unflatten(1, down.shape[1:])

    def delta(self, weight: Tensor) -> Tensor:
        change = self._additive()
        return change if self.magnitude is None else self.magnitude.delta(weight, change)

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor] | None:
        return None if self.magnitude is not None else (self._scaled_up(), self._whole_down().flatten(1))

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        return self.magnitude is not None or self._forms_the_weight(module, positions)

    def _forms_the_weight(self, module: nn.Module, positions: int) -> bool:
        if self.magnitude is not None and not self.magnitude.on_output:
            return True
        weight = weight_of(module)
        core = 0 if self.mid is None else self.mid.numel()
        per_position = getattr(module, "groups", 1) * (self.down.numel() + core) + self.up.numel()
        return weight_is_cheaper(weight, positions, per_position, self.rank * weight.numel())

    def forward_whole(self, x: Tensor, module: nn.Module, multiplier: float) -> Tensor:
        if self.magnitude is None or self._forms_the_weight(module, output_positions(module, x)):
            return super().forward_whole(x, module, multiplier)
        ratio, points = self._output_ratio(self.magnitude, module), [1] * (self.up.dim() - 2)
        factors, bias = (1 + multiplier * (ratio - 1)).reshape(-1, *points), module.bias
        output = module_operation(module, x, weight_of(module))
        if isinstance(bias, Tensor):
            output = torch.addcmul(bias.reshape(-1, *points), output, factors)
        else:
            output = output * factors
        return output + self._change(x, module, self._scaled_up() * (multiplier * ratio)[:, None])

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        magnitude = self.magnitude
        if magnitude is not None and (base_output is None or not magnitude.on_output):
            return super().forward_change(x, module, multiplier, base_output)
        mask = self.rank_mask(self.rank, self.up)
        up = self._scaled_up(mask) * multiplier
        if magnitude is None or base_output is None:
            return self._change(x, module, up)
        ratio, points = self._output_ratio(magnitude, module, mask), [1] * (self.up.dim() - 2)
        if isinstance(module.bias, Tensor):
            base_output = base_output - module.bias.reshape(-1, *points)
        scaled = (multiplier * (ratio - 1)).to(base_output.dtype).reshape(-1, *points) * base_output
        return scaled + self._change(x, module, up * ratio[:, None])

    def _change(self, x: Tensor, module: nn.Module, up: Tensor) -> Tensor:
        return low_rank_change(module, x, up, self.down if self.mid is None else self.down.flatten(1), self.mid)

    def _output_ratio(self, magnitude: Magnitude, module: nn.Module, mask: Tensor | None = None) -> Tensor:
        with torch.autocast(self.up.device.type, enabled=False):
            return magnitude.output_ratio(weight_of(module), self._scaled_up(mask), self._whole_down().flatten(1))

    def regularised_norm(self, weight: Tensor) -> float:
        up, down = self._scaled_up(), self._whole_down().flatten(1)
        return float(((up.T @ up) * (down @ down.T)).detach().sum().clamp_min(0).sqrt())

    def shrink(self, ratio: float) -> None:
        self.up.mul_(ratio)
