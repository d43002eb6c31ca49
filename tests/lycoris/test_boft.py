"""BOFT against explicit permutations in float64, the published golden vectors and finite differences."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.boft import BOFT, block_sizes
from mixshow.lycoris.operation import module_operation
from mixshow.lycoris.registry import algorithm_of
from tests.lycoris.conformance import Conformance
from tests.lycoris.golden import Golden
from tests.lycoris.rotations import LAYERS, butterfly, filled, layer, rotations

GOLDEN = {
    "linear": Golden(
        {"oft_blocks": (2, 2, 10, 10)}, 0.0, (0.774018, 0.858813, -0.012249, -0.00936344, -0.167781, 0.390398)
    ),
    "conv": Golden(
        {"oft_blocks": (2, 2, 10, 10)}, 0.0, (1.3839, 0.17611, -0.0300874, -0.0471181, -0.032762, 0.696162),
        convolution=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", GOLDEN.values(), ids=list(GOLDEN))
def test_it_is_what_lycoris_computes(row: Golden) -> None:
    assert algorithm_of(row.tensors()) is BOFT
    row.check(BOFT)


def test_constraint_and_rescaling_are_what_lycoris_computes() -> None:
    """At multiplier 1: elsewhere the rescaling is interpolated here too, and 0 is the base itself."""
    row = Golden({"oft_blocks": (2, 2, 10, 10), "rescale": (20, 1)}, 0.02, (0,) * 6)
    module, tensors = row.module(), row.tensors()
    delta = BOFT.from_tensors({**tensors, "rescale": tensors["rescale"] + 1}, module).delta(module.weight).detach()
    found = (delta.norm(), delta.sum(), delta[0, 0], delta[7, 5], delta[19, -1])
    expected = (1.29397, 2.15863, 0.0558242, 0.0228209, -0.0989135)
    assert list(map(float, found)) == pytest.approx(expected, rel=2e-5, abs=1e-6)


class TestBOFT(Conformance):
    algo = "boft"
    options: ClassVar = {"constraint": 0.02}
    proportional = False


class TestRescaledBOFT(Conformance):
    algo = "boft"
    dim = 4
    options: ClassVar = {"rescaled": True}
    proportional = False


@pytest.mark.parametrize(
    ("channels", "size", "stages"), [(20, 10, 2), (8, 2, 3), (64, 2, 6), (48, 6, 4), (12, 12, 1), (256, 2, 8)]
)
@pytest.mark.parametrize("multiplier", [1.0, 0.6])
def test_stages_computed_together_are_the_stages(channels: int, size: int, stages: int, multiplier: float) -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, channels).double().requires_grad_(False)
    adapter = filled(BOFT.create(module, dim=size, alpha=1.0))
    assert adapter.blocks.shape == (stages, channels // size, size, size)
    expected = butterfly(rotations(adapter.blocks, 0.0, multiplier), module.weight)
    torch.testing.assert_close(adapter.weight_at(module.weight, multiplier), expected)


@pytest.mark.parametrize("options", [{}, {"constraint": 0.01}, {"rescaled": True}])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("multiplier", [1.0, 0.6])
def test_weight_and_output_turn_as_written_out(kind: str, options: dict, multiplier: float) -> None:
    module, x = layer(kind)
    adapter = filled(BOFT.create(module, dim=10, alpha=1.0, **options))
    turned = butterfly(rotations(adapter.blocks, adapter.constraint * 20, multiplier), module.weight.flatten(1))
    rescale = 1.0 if adapter.rescale is None else 1 + multiplier * (adapter.rescale.flatten(1) - 1)
    changed = (rescale * turned).reshape(module.weight.shape)
    torch.testing.assert_close(adapter.weight_at(module.weight, multiplier), changed)
    if kind != "grouped":  # channels of different groups read different inputs: only the weight can be turned
        expected = module_operation(module, x, changed - module.weight)
        output = module_operation(module, x, module.weight)
        torch.testing.assert_close(adapter.output_change(module, output, multiplier), expected)


def test_gradients_of_the_turned_output_are_those_of_finite_differences() -> None:
    module = nn.Linear(3, 8).double()
    adapter = filled(BOFT.create(module, dim=2, alpha=1.0, constraint=0.2, rescaled=True))
    output = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    values = (output, *adapter.parameters())
    assert torch.autograd.gradcheck(lambda *_: adapter.output_change(module, output, 0.7), values)


@pytest.mark.parametrize(
    ("channels", "dim", "size", "count"),
    [
        (320, 10, 10, 32), (320, 32, 20, 16), (640, 16, 10, 64), (768, 6, 6, 128), (768, 16, 12, 64),
        (1280, 64, 40, 32), (2560, 10, 10, 256), (3072, 8, 6, 512), (960, 32, 30, 32), (4, 4, 4, 1), (4, 16, 4, 1),
    ],
)  # fmt: skip
def test_block_sizes(channels: int, dim: int, size: int, count: int) -> None:
    assert BOFT.create(nn.Linear(2, channels), dim=dim, alpha=1.0).blocks.shape[1:3] == (count, size)


def test_impossible_blocks_name_the_possible_ones() -> None:
    assert block_sizes(320) == [10, 20, 40, 80, 160, 320]
    with pytest.raises(
        MixshowError, match=r"at least 10, the smallest .* 320 output channels \(next: 20, 40\), found 8"
    ):
        BOFT.create(nn.Linear(2, 320), dim=8, alpha=1.0)
    with pytest.raises(MixshowError, match="even number of output channels, found 77"):
        BOFT.create(nn.Linear(2, 77), dim=8, alpha=1.0)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (3, 2, 10, 10), (2, 2, 10, 5), (2, 4, 5, 5)])
def test_files_for_other_layers_are_refused(shape: tuple[int, ...]) -> None:
    tensors: dict[str, Tensor] = {"oft_blocks": torch.zeros(shape), "alpha": torch.tensor(0.0)}
    with pytest.raises(MixshowError, match=r"expected oft_blocks \[m, N, b, b\]"):
        BOFT.from_tensors(tensors, nn.Linear(6, 20))


def test_few_passes_over_the_output() -> None:
    adapter = BOFT.create(nn.Linear(2, 1280), dim=16, alpha=1.0)
    assert adapter.blocks.shape == (8, 128, 10, 10)
    products, passes = adapter.work
    assert passes == 2 and products <= 160
