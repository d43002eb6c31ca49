"""Hard constraints: keys and values of concept tokens exactly as in each concept's own model.

Custom Diffusion's merge (Kumari et al. 2023, arXiv 2212.04488, equation 4):

    minimise over W:  || (W - W_0) C_reg^T ||^2   subject to   W C^T = V

with C_reg the text features of ordinary captions, C those of the concepts' target words and V what the concepts' own
layers make of them. In changes, with D_i c the change that concept i wants on its own rows C_i:

    minimise over D:  mu || D X_b^T ||^2 / n_b  +  lambda ||D||^2   subject to   D C_i^T = D_i C_i^T   for all i

Nothing but the rows of C speaks for the concepts; the least squares of `problem.py` weigh all rows instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from mixshow.fusion.inputs import Inputs
from mixshow.fusion.problem import LayerProblem


@dataclasses.dataclass(frozen=True, eq=False)
class ConstrainedProblem(LayerProblem):
    """A layer with constraints. A concept that leaves it alone wants no change on its rows.

    Attributes:
        inputs: with weights of 0, so that what is minimised is of ordinary captions and the ridge alone.
        rows: C_i, one `[rows, in]` per concept, float64; the same ones for the layers that share their inputs.
        all_inputs: with the concepts' weights.
    """

    rows: Sequence[Tensor]
    all_inputs: Inputs

    @property
    def metric(self) -> Tensor:
        return self.all_inputs.matrix

    @cached_property
    def all_rows(self) -> Tensor:
        """C of all concepts, `[rows, in]`."""
        return torch.cat(list(self.rows))

    @cached_property
    def outputs(self) -> Tensor:
        """T: what D must make of them, `[rows, out]`, float64."""
        return torch.cat(
            [
                own.new_zeros(len(own), len(self.target)) if delta is None else own @ delta.double().mT
                for own, delta in zip(self.rows, self.deltas)
            ]
        )

    def unmet(self, change: Tensor) -> float:
        """`||D C^T - T|| / ||T||` at D, `[out, in]`; the numerator alone where T is 0."""
        wanted = self.outputs.norm()
        missing = (self.all_rows @ change.mT - self.outputs).norm()
        return float(missing / wanted) if wanted > 0 else float(missing)


def constrained_problems(problems: Sequence[LayerProblem], rows: Sequence[Mapping[str, Tensor]]) -> list[LayerProblem]:
    """The same layers with constraints.

    Args:
        rows: for each concept, its C_i `[rows, in]` by module path.
    """
    shared: dict[int, tuple[Inputs, list[Tensor]]] = {}
    found: list[LayerProblem] = []
    for problem in problems:
        key = id(problem.inputs)
        if key not in shared:
            own = [each[problem.name].to(problem.matrix) for each in rows]
            shared[key] = dataclasses.replace(problem.inputs, weights=[0.0] * len(own)), own
        inputs, own = shared[key]
        found.append(ConstrainedProblem(problem.name, inputs, problem.deltas, own, problem.inputs))
    return found
