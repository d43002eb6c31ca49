"""A layer's problem on rows kept as they are: any loss of its outputs in place of squared errors.

    minimise over D:  sum_i w_i sum_x rho(D x, D_i x) / n_i  +  mu tr(D G_b D^T)  +  lambda ||D||^2

over the n_i rows x kept of concept i (`rows.py`). Anchor and ridge are those of `problem.py`, on all that was recorded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from mixshow.fusion.losses import RowLoss
from mixshow.fusion.problem import LayerProblem


@dataclasses.dataclass(frozen=True, eq=False)
class SampledProblem(LayerProblem):
    """A layer with kept rows.

    Attributes:
        rows: one `[rows, in]` per concept.
        weight: W_0, `[out, in]`, with the bias as a last column where inputs are extended.
    """

    rows: Sequence[Tensor]
    weight: Tensor

    @cached_property
    def all_rows(self) -> Tensor:
        """X of all concepts, `[rows, in]`, float64."""
        return torch.cat([each.to(self.matrix) for each in self.rows])

    @cached_property
    def row_weights(self) -> Tensor:
        """`w_i / n_i` of every row, `[rows]`; they sum to 1."""
        parts = [
            self.matrix.new_full((len(each),), weight / max(len(each), 1))
            for each, weight in zip(self.rows, self.inputs.weights)
        ]
        return torch.cat(parts)

    @cached_property
    def wanted(self) -> Tensor:
        """D_i x of every row, `[rows, out]`."""
        parts = [
            self.matrix.new_zeros(len(each), len(self.target))
            if delta is None
            else each.to(self.matrix) @ delta.double().mT
            for each, delta in zip(self.rows, self.deltas)
        ]
        return torch.cat(parts)

    @cached_property
    def outputs_before(self) -> Tensor:
        """W_0 x of every row, `[rows, out]`."""
        return self.all_rows @ self.weight.to(self.matrix).mT

    @cached_property
    def pull(self) -> Tensor:
        """`mu G_b + lambda I`, `[in, in]`."""
        pull = self.inputs.ridge_value * torch.eye(self.matrix.shape[-1]).to(self.matrix)
        anchor = self.inputs.anchor_moment
        return pull if anchor is None else pull + self.inputs.anchor_weight * anchor

    def value_of(self, loss: RowLoss, change: Tensor) -> float:
        """What is minimised, at D `[out, in]`."""
        values, _ = loss(self.all_rows @ change.mT)
        return float((self.row_weights * values).sum() + ((change @ self.pull) * change).sum())

    def gradient_of(self, loss: RowLoss, change: Tensor) -> Tensor:
        """Its gradient, `[out, in]`."""
        _, slopes = loss(self.all_rows @ change.mT)
        return (self.row_weights[:, None] * slopes).mT @ self.all_rows + 2 * change @ self.pull


def sampled_problems(
    problems: Sequence[LayerProblem], rows: Sequence[Mapping[str, Tensor]], modules: Mapping[str, nn.Module]
) -> list[LayerProblem]:
    """The same layers with kept rows; normalisations, of which none are kept, stay as they are.

    Args:
        rows: for each concept, by module path.
        modules: of the base, by path.
    """
    found: list[LayerProblem] = []
    for problem in problems:
        if problem.matrix.dim() > 2:
            found.append(problem)
            continue
        own = [each[problem.name] for each in rows]
        weight = _weight(modules[problem.name], problem.matrix.shape[-1])
        # A cosine knows all outputs of a layer, not only those that the changes span: so matrices, never factors.
        found.append(SampledProblem(problem.name, problem.inputs, list(problem.deltas), own, weight))
    return found


def _weight(module: nn.Module, width: int) -> Tensor:
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    matrix = weight.detach().flatten(1)
    if matrix.shape[1] == width:
        return matrix
    column = matrix.new_zeros(len(matrix), 1) if bias is None else bias.detach().reshape(-1, 1)
    return torch.cat([matrix, column], dim=1)
