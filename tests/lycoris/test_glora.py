"""GLoRA in every variant."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import weight_of
from mixshow.lycoris.glora import GLoRA
from tests.lycoris.conformance import Conformance
from tests.lycoris.golden import Golden


class TestGLoRA(Conformance):
    algo = "glora"


class TestScalar(Conformance):
    algo = "glora"
    options: ClassVar = {"use_scalar": True, "rs_lora": True}
    kinds = ("linear", "conv3x3", "grouped")


LINEAR = {"a1.weight": (12, 4), "a2.weight": (4, 12), "b1.weight": (20, 4), "b2.weight": (4, 12)}
WIDE = {
    "a1.weight": (12, 4, 1, 1), "a2.weight": (4, 12, 1, 1), "b1.weight": (20, 4, 1, 1), "b2.weight": (4, 12, 3, 3),
}  # fmt: skip


@pytest.mark.parametrize(
    "golden",
    [
        Golden(LINEAR, 2, (0.507252, -0.00224365, -0.0164341, -0.00474441, -0.0394544, 0.253626)),
        Golden(WIDE, 2, (8.65461, 0.6468, 0.257755, -0.36373, -0.167592, 4.32731), convolution=True),
    ],
    ids=["linear", "conv3x3"],
)
def test_numbers_of_lycoris(golden: Golden) -> None:
    golden.check(GLoRA)


def test_a_core_between_b1_and_b2_is_read() -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(12, 20, 3)
    shapes = {"a1": (12, 2, 1, 1), "a2": (2, 12, 1, 1), "b1": (20, 2, 1, 1), "b2": (2, 12, 1, 1), "bm": (2, 2, 3, 3)}
    tensors = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    found = GLoRA.from_tensors({**tensors, "alpha": torch.tensor(2.0)}, module).delta(weight_of(module))
    a1, a2, b1, b2, bm = (tensor.squeeze(-1).squeeze(-1) for tensor in tensors.values())
    weight = weight_of(module)
    expected = torch.einsum("ocuv,cr,rd->oduv", weight, a1, a2) + torch.einsum("oi,ijuv,jd->oduv", b1, bm, b2)
    torch.testing.assert_close(found, expected)


def test_a_convolutions_low_rank_factors_are_one_per_element_of_the_kernel() -> None:
    module = nn.Conv2d(12, 20, 3)
    up, down = GLoRA.create(module, dim=2, alpha=1.0).low_rank(weight_of(module))
    assert (up.shape, down.shape) == ((20, 2 * 9 + 2), (2 * 9 + 2, 12 * 9))


def test_mistakes_are_explained() -> None:
    module = nn.Linear(12, 20)
    with pytest.raises(MixshowError, match="rank of at most 12"):
        GLoRA.create(module, dim=13, alpha=1.0)
    tensors = GLoRA.create(module, dim=2, alpha=1.0).tensors()
    with pytest.raises(MixshowError, match=r"weight of shape \[20, 8\], found a1 \[12, 2\]"):
        GLoRA.from_tensors(tensors, nn.Linear(8, 20))
