"""The UNet's fused weights while they are distilled: each moves as a whole, or as two factors of its change.

With W = W_0 + U V the gradient G of a weight gives those of its factors, G V^T and U^T G, so the model runs on plain
weights either way. Factors keep a fused change at its rank, which is what a network file can hold.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from mixshow.fusion.factors import Factors
from mixshow.fusion.fusion import FormedChanges, Fusion, parts_of
from mixshow.fusion.layers import Stage, layers_of, put_biases_in_place
from mixshow.models import Base

_ROUNDING = 1e-6  # singular values below this share of the largest are rounding


class MovingWeights:
    """What the optimizer steps: by module path, the weights of the UNet that a fusion changes.

    Args:
        base: must stay as it is outside of `in_place`.
        fusion: where to start; its biases, embeddings and text encoder stay.
        factors: of its changes by module path; these layers keep the rank of theirs. None: all move as wholes.
    """

    def __init__(self, base: Base, fusion: Fusion, factors: Mapping[str, Factors] | None = None) -> None:
        self._base, self._start = base, fusion
        layers = {layer.path: layer.module for layer in layers_of(base).values() if layer.stage is not Stage.TEXT}
        self._modules = {path: layers[path] for path in fusion.changes if path in layers}
        self._weights = {path: learning_weight(module) for path, module in self._modules.items()}
        # In single precision the very tensors: nothing is added to them, others take their place.
        self._unchanged = {path: weight.detach().float() for path, weight in self._weights.items()}
        self._wholes: dict[str, nn.Parameter] = {}
        self._factors: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self._biases: dict[str, Tensor] = {}  # changes of them, which stay
        for path, before in self._unchanged.items():
            own = (factors or {}).get(path)
            if own is None:
                change = fusion.changes[path].to(before.device)
                weight, rest = change[:, : before[0].numel()], change[:, before[0].numel() :]
                self._wholes[path] = nn.Parameter((before.to(weight) + weight.reshape(before.shape)).float())
                if rest.numel():
                    self._biases[path] = rest[:, 0].clone()
            else:
                up, down = (factor.float().to(before.device) for factor in balanced_directions(own))
                self._factors[path] = nn.Parameter(up), nn.Parameter(down)

    def __bool__(self) -> bool:
        return bool(self._weights)

    def parameters(self) -> list[nn.Parameter]:
        """All that moves, always in the same order."""
        return [*self._wholes.values(), *(factor for both in self._factors.values() for factor in both)]

    def values(self) -> list[Tensor]:
        """Copies of all that moves."""
        return [parameter.detach().clone() for parameter in self.parameters()]

    @torch.no_grad()
    def set_values(self, values: Sequence[Tensor]) -> None:
        """Put copies back."""
        for parameter, value in zip(self.parameters(), values, strict=True):
            parameter.copy_(value)

    def fusion(self) -> Fusion:
        """The fusion with the weights as they are now; layers with factors have these exactly."""
        with torch.no_grad():
            parts = {
                path: [self._with_bias(path, whole.detach() - self._unchanged[path])]
                for path, whole in self._wholes.items()
            }
            for path, both in self._factors.items():
                parts[path] = [factor.detach().double() for factor in both]
        start = self._start.changes
        changes = FormedChanges({path: parts.get(path) or parts_of(start, path) for path in start})
        directions = {path: up.detach().clone() for path, (up, _) in self._factors.items()}
        return dataclasses.replace(self._start, changes=changes, directions={**self._start.directions, **directions})

    def _with_bias(self, path: str, moved: Tensor) -> Tensor:
        """A weight's change as a matrix, with the bias's, which stays, as its last column where it has one."""
        rows = moved.reshape(len(moved), -1)
        bias = self._biases.get(path)
        return rows if bias is None else torch.cat([rows.to(bias), bias[:, None]], dim=1)

    @contextmanager
    def in_place(self) -> Iterator[Base]:
        """The fused model as it is now, whose weights learn within the block."""
        start = self._start.changes
        rest = FormedChanges({path: parts_of(start, path) for path in start if path not in self._weights})
        with (
            dataclasses.replace(self._start, changes=rest).in_place(self._base) as fused,
            put_biases_in_place(self._modules, self._biases) as attachment,
        ):
            for weight in self._weights.values():
                attachment.add(partial(setattr, weight, "data", weight.data))
                attachment.add(partial(weight.requires_grad_, weight.requires_grad))
                attachment.add(partial(setattr, weight, "grad", None))
                weight.requires_grad_(True)
            self.place()
            try:
                yield fused
            finally:
                for parameter in self.parameters():
                    parameter.grad = None

    def place(self) -> None:
        """Put what moved into the model that is in place."""
        for path, whole in self._wholes.items():
            self._weights[path].data = whole.data
        for path, (up, down) in self._factors.items():
            before = self._unchanged[path]
            self._weights[path].data = before + (up.data @ down.data).reshape(before.shape)

    def take_gradients(self) -> None:
        """Hand the gradients of the model in place on to what moves, and clear them."""
        for path, weight in self._weights.items():
            assert weight.grad is not None  # every fused layer has a part in a prediction
            gradient, weight.grad = weight.grad, None
            if path in self._wholes:
                self._wholes[path].grad = gradient
                continue
            up, down = self._factors[path]
            flat = gradient.reshape(len(up), -1)
            up.grad, down.grad = flat @ down.data.mT, up.data.mT @ flat


def balanced_directions(factors: Factors) -> tuple[Tensor, Tensor]:
    """The same product with both factors alike in every direction, and none in which neither can learn.

    Returns:
        `up [out, rank]` with orthogonal columns and `down [rank, in]` with orthogonal rows. Where the change has less
        than its rank, columns of `up` are 0 and rows of `down` are as long as on average.
    """
    outputs, left = torch.linalg.qr(factors.up.double())
    inputs, right = torch.linalg.qr(factors.down.double().mT)
    rotation, sizes, turn = torch.linalg.svd(left @ right.mT, full_matrices=False)
    known = sizes > _ROUNDING * sizes.max()
    roots = sizes.sqrt()
    lengths = torch.where(known, roots, roots[known].mean() if bool(known.any()) else torch.ones_like(roots))
    up = outputs @ rotation * torch.where(known, roots, torch.zeros_like(roots))
    return up, lengths[:, None] * (turn @ inputs.mT)


def learning_weight(module: nn.Module) -> nn.Parameter:
    """What of a layer distilling moves."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight
