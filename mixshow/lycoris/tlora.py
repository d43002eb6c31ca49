"""T-LoRA: a low-rank change that starts from the weight's own singular vectors and uses fewer ranks at noisier times.

`delta = s (P diag(l) Q - P0 diag(l0) Q0)`, s = alpha / r, the second product being the first at the start. Soboleva et
al. 2025 (arXiv 2507.05964). It is computed as `s [P - P0, P0] [l Q; l Q - l0 Q0]`: exact, of rank 2r, without the
difference of two large products.

Files hold P, Q, l but not their start, which is found again in the weight: on another base they mean another change.
A start that is not the weight's largest singular values is written with them. `low_rank` needs neither. Which ranks act
at which time only metadata tells; files without it have all ranks at all times.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, computed_in, precise, read_alpha, scale_tensor, weight_of
from mixshow.lycoris.carrier import own_weight
from mixshow.lycoris.layer import check_rank, matrix_of
from mixshow.lycoris.low_rank import low_rank_change, weight_is_cheaper
from mixshow.lycoris.operation import rebuilt_operation
from mixshow.lycoris.singular import Factors, factors_of, singular_factors
from mixshow.lycoris.timed_ranks import change_by_picture, timed_ranks

_NOW = ("p_layer.weight", "lambda_layer", "q_layer.weight")
# Under these names LyCORIS holds the start in training, and leaves it out of its files.
_START = ("base_p", "base_lambda", "base_q")


class TLoRA(Algorithm):
    """Low-rank change with ranks by diffusion time.

    Attributes:
        left: P `[out, r]`.
        values: l `[r]`.
        right: Q `[r, in * kernel]`.
        min_rank, rank_power: at time t of T, `floor(((T - t) / T)^rank_power (r - min_rank)) + min_rank` ranks;
            with min_rank None all of them.
        alpha: as files have it, but for `bounded`.
        bounded: what max-norm regularisation left of the scale, which the factors cannot hold.
    """

    name = "tlora"
    aliases = ("t-lora",)
    options: ClassVar[Mapping[str, str]] = {
        "sig_type": "singular values to start from: principal, middle or last",
        "use_data_init": "start from the weight's singular vectors; false: from those of a random matrix",
        "min_rank": "ranks that are used at the noisiest time",
        "rank_power": "how fast ranks are taken away as the noise grows; 1: evenly",
    }
    file_options = ("min_rank", "rank_power")
    bounded: Tensor

    def __init__(
        self,
        factors: Factors,
        start: Factors,
        alpha: float,
        *,
        shape: tuple[int, ...],
        min_rank: int | None = None,
        rank_power: float = 1.0,
        found_again: bool = True,
    ) -> None:
        """
        Args:
            start: the factors at the start of training.
            shape: of the weight.
            min_rank: see the class.
            rank_power: see the class.
            found_again: the start follows from the weight, so that files do without it.

        Raises:
            MixshowError: a min_rank that is no number of ranks, a power that is not above 0.
        """
        if (min_rank is not None and not 1 <= min_rank <= len(factors.values)) or rank_power <= 0:
            raise MixshowError(
                f"expected a min_rank of 1 to {len(factors.values)} (dim) and a positive rank_power, found {min_rank} "
                f"and {rank_power}"
            )
        super().__init__()
        self.left, self.values, self.right = (nn.Parameter(factor.clone()) for factor in factors)
        for name, factor in zip(Factors._fields, start):
            self.register_buffer(f"start_{name}", factor.clone())
        self.register_buffer("bounded", torch.ones(()))
        self.alpha, self.shape, self.found_again = float(alpha), tuple(shape), found_again
        self.min_rank, self.rank_power = min_rank, rank_power
        self._mask: Tensor | None = None

    @property
    def rank(self) -> int:
        return self.values.shape[0]

    @property
    def start(self) -> Factors:
        """The factors at the start of training."""
        return Factors(self.get_buffer("start_left"), self.get_buffer("start_values"), self.get_buffer("start_right"))

    @classmethod
    def claims(cls, names: Collection[str]) -> bool:
        return "lambda_layer" in names or "q_layer.weight" in names

    @classmethod
    def create(
        cls,
        module: nn.Module,
        *,
        dim: int,
        alpha: float,
        sig_type: str = "principal",
        use_data_init: bool = True,
        min_rank: int = 1,
        rank_power: float = 1.0,
    ) -> Self:
        """Factors equal to their start.

        Args:
            dim: rank.
            alpha: the change is scaled by alpha / dim.
            sig_type: which singular values to start from.
            use_data_init: of the weight; False: of a random matrix.
            min_rank: see the class.
            rank_power: see the class.

        Raises:
            MixshowError: a rank above the weight's, an unknown `sig_type`, a min_rank above the rank.
        """
        weight = _flattened(module)
        shape = tuple(matrix_of(module).shape)
        check_rank(matrix_of(module), dim, min(weight.shape))
        matrix = weight if use_data_init else torch.randn(weight.shape, device=weight.device) / dim
        start = singular_factors(matrix, dim, sig_type)
        return cls(
            start,
            start,
            alpha,
            shape=shape,
            min_rank=min_rank,
            rank_power=rank_power,
            found_again=use_data_init and sig_type == "principal",
        )

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        module: nn.Module,
        *,
        min_rank: int | None = None,
        rank_power: float = 1.0,
    ) -> Self:
        weight, shape = _flattened(module), tuple(matrix_of(module).shape)
        rank = tensors["lambda_layer"].numel()
        factors = factors_of(tensors, *_NOW, shape)
        if factors is None:
            raise MixshowError(
                "expected p_layer.weight [out, r], lambda_layer [1, r], q_layer.weight [r, in, *kernel] for a weight "
                f"{list(shape)}, found {', '.join(str(list(tensors[name].shape)) for name in _NOW)}; the file was made "
                "for a base of other widths"
            )
        written = _START[0] in tensors
        start = factors_of(tensors, *_START, shape) if written else singular_factors(weight, rank).towards(factors)
        if start is None or len(start.values) != rank:
            raise MixshowError(f"expected {', '.join(_START)} in the shapes of the factors that start there")
        return cls(
            factors,
            start,
            read_alpha(tensors, rank),
            shape=shape,
            min_rank=min_rank,
            rank_power=rank_power,
            found_again=not written,
        )

    def tensors(self) -> dict[str, Tensor]:
        points = [1] * (len(self.shape) - 2)
        down, up = self.right.reshape(self.rank, *self.shape[1:]), self.left.reshape(*self.left.shape, *points)
        found = {"alpha": scale_tensor(self.alpha * float(self.bounded)), "q_layer.weight": down, "p_layer.weight": up}
        found["lambda_layer"] = self.values[None]
        if not self.found_again:
            left, values, right = self.start
            start = left.reshape(up.shape), values[None], right.reshape(down.shape)
            found |= dict(zip(_START, start))
        return found

    def told_options(self) -> dict[str, float]:
        return super().told_options() if self.timed else {}

    @property
    def timed(self) -> bool:
        return self.min_rank is not None and self.min_rank < self.rank

    def set_timestep(self, timestep: int | Tensor | None, steps: int = 1000) -> None:
        """Use the ranks of a diffusion time in every forward that follows; delta and files always have all ranks.

        Args:
            timestep: one number, or `[batch]`; None: all ranks.
            steps: length of the noise schedule.
        """
        if timestep is None or self.min_rank is None:
            self._mask = None
            return
        mask = timed_ranks(timestep, steps, self.rank, least=self.min_rank, power=self.rank_power)
        self._mask = mask.to(self.values.device)

    def train(self, mode: bool = True) -> Self:
        """As of any module; a change of mode forgets the timestep, so that none from training acts in sampling."""
        if mode != self.training:
            self._mask = None
        return super().train(mode)

    def _stacked(self, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The change as `up [out, 2r] @ down [2r, in * kernel]`, both in at least float32."""
        left, values, right = (factor.to(precise(factor)) for factor in (self.left, self.values, self.right))
        start_left, start_values, start_right = (factor.to(left.dtype) for factor in self.start)
        up = torch.cat([left - start_left, start_left], dim=1) * (self.alpha / self.rank * self.bounded)
        now = values[:, None] * right
        down = torch.cat([now, now - start_values[:, None] * start_right])
        return up if mask is None else up * torch.cat([mask, mask], dim=-1), down

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._stacked()

    def delta(self, weight: Tensor) -> Tensor:
        up, down = self._stacked()
        return (up @ down).reshape(self.shape)

    def shrink(self, ratio: float) -> None:
        self.bounded.mul_(ratio)

    def prefers_weight(self, module: nn.Module, positions: int) -> bool:
        weight = weight_of(module)
        return self._mask is None and weight_is_cheaper(
            weight, positions, self._per_position(module), 2 * self.rank * weight.numel()
        )

    def _per_position(self, module: nn.Module) -> int:
        """Multiplications of the change for one position of the output."""
        return 2 * self.rank * (getattr(module, "groups", 1) * math.prod(self.shape[1:]) + self.shape[0])

    def forward_change(self, x: Tensor, module: nn.Module, multiplier: float, base_output: Tensor | None) -> Tensor:
        times, mask = self._mask, self.rank_mask(self.rank, self.values)
        if times is not None and len(times) > 1:  # pictures of different times
            up, down = self._stacked(mask)
            down = down.reshape(-1, *self.shape[1:])
            return change_by_picture(module, x, multiplier * up, down, torch.cat([times, times], dim=1))
        if times is not None:
            mask = times[0] if mask is None else times[0] * mask
        if self._per_position(module) > math.prod(self.shape):

            def change() -> Tensor:
                up, down = self._stacked(mask)
                return (multiplier * up @ down).reshape(self.shape)

            return rebuilt_operation(module, computed_in(x), None, change, list(self.parameters()))
        up, down = self._stacked(mask)
        return low_rank_change(module, x, multiplier * up, down.reshape(-1, *self.shape[1:]))


def _flattened(module: nn.Module) -> Tensor:
    """The weight `[out, in * kernel]` in at least float32, without what networks merged into it."""
    matrix_of(module)
    weight = own_weight(module)
    return weight.to(precise(weight)).flatten(1)
