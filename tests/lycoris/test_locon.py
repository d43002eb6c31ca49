"""LoRA and LoCon in every variant."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from mixshow.lycoris.locon import LoCon
from tests.lycoris.conformance import Conformance
from tests.lycoris.golden import Golden


class TestLoCon(Conformance):
    algo = "locon"


class TestTucker(Conformance):
    algo = "lora"
    options: ClassVar = {"use_tucker": True}
    kinds = ("conv3x3", "dilated", "grouped", "conv1d", "conv3d")


class TestScalar(Conformance):
    algo = "locon"
    options: ClassVar = {"use_scalar": True, "rs_lora": True}
    kinds = ("linear", "conv3x3")


class TestDoRA(Conformance):
    algo = "locon"
    options: ClassVar = {"weight_decompose": True}
    kinds = ("linear", "linear_no_bias", "conv3x3", "grouped", "conv3d")
    exact_start = False


class TestDoRAOnInput(Conformance):
    algo = "locon"
    options: ClassVar = {"weight_decompose": True, "wd_on_out": False, "use_tucker": True}
    kinds = ("linear", "conv3x3", "grouped")
    exact_start = False


LINEAR = {"lora_up.weight": (20, 4), "lora_down.weight": (4, 12)}
WIDE = {"lora_up.weight": (20, 4, 1, 1), "lora_down.weight": (4, 12, 3, 3)}
TUCKER = {"lora_up.weight": (20, 4, 1, 1), "lora_down.weight": (4, 12, 1, 1), "lora_mid.weight": (4, 4, 3, 3)}


@pytest.mark.parametrize(
    "golden",
    [
        Golden(LINEAR, 2, (0.510706, -0.0296596, 0.00987448, 0.00669278, -0.0286214, 0.255353)),
        Golden(LINEAR, 4, (1.02141, -0.0593193, 0.019749, 0.0133856, -0.0572427, 0.510706)),  # rs_lora as saved
        Golden(WIDE, 2, (8.6098, 0.00950017, 0.319843, -0.258058, -0.321228, 4.3049), convolution=True),
        Golden(TUCKER, 2, (3.09779, 0.000439488, 0.0175951, 0.0317579, -0.00897594, 1.5489), convolution=True),
    ],
    ids=["linear", "rs_lora", "conv3x3", "tucker"],
)
def test_numbers_of_lycoris(golden: Golden) -> None:
    golden.check(LoCon)


@pytest.mark.parametrize(
    ("scale", "numbers"),
    [
        ((20, 1), (2.15108, -1.01702, -0.0243477, -0.0372937, 0.260146)),
        ((1, 12), (1.41746, -0.238711, -0.0393044, -0.0355247, 0.170142)),
    ],
    ids=["out", "in"],
)
def test_numbers_of_lycoris_for_dora(scale: tuple[int, int], numbers: tuple[float, ...]) -> None:
    """The norm at half the multiplier has another rule there: multiplier 0 is the base itself here."""
    half = 0.5 * numbers[0]
    Golden({"dora_scale": scale, **LINEAR}, 2, (*numbers, half)).check(LoCon)  # type: ignore[arg-type]


def test_the_low_rank_form_of_dora_is_the_formed_one() -> None:
    module = nn.Conv2d(6, 8, 3, groups=2)
    lora = LoCon.create(module, dim=2, alpha=3.0, weight_decompose=True)
    lora.up.data.normal_()
    up, down = lora._scaled_up(), lora._whole_down().flatten(1)
    assert lora.magnitude is not None
    total = module.weight.flatten(1) + up @ down
    expected = lora.magnitude.scale.flatten() / total.norm(dim=1)
    torch.testing.assert_close(lora.magnitude.output_ratio(module.weight, up, down), expected)


@pytest.mark.parametrize(
    ("width", "rank", "positions", "whole"),
    [(320, 16, 4096, False), (320, 128, 4096, True), (320, 16, 4, False)],
)
def test_the_cheaper_form_is_chosen(width: int, rank: int, positions: int, whole: bool) -> None:
    module = nn.Linear(width, width)
    assert LoCon.create(module, dim=rank, alpha=1.0).prefers_weight(module, positions) == whole


def test_a_matrix_may_stand_for_a_pointwise_convolution_and_back() -> None:
    linear, conv = nn.Linear(6, 8), nn.Conv2d(6, 8, 1)
    matrices = LoCon.create(linear, dim=2, alpha=1.0).tensors()
    assert LoCon.from_tensors(matrices, conv).delta(conv.weight).shape == (8, 6, 1, 1)
    kernels = LoCon.create(conv, dim=2, alpha=1.0).tensors()
    assert LoCon.from_tensors(kernels, linear).delta(linear.weight).shape == (8, 6)
