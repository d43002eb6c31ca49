"""LoHa in every variant."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import weight_of
from mixshow.lycoris.locon import LoCon
from mixshow.lycoris.loha import LoHa
from tests.lycoris.conformance import Conformance
from tests.lycoris.golden import Golden

VARIANT = ("linear", "conv3x3", "grouped")


class TestLoHa(Conformance):
    algo = "loha"


class TestTucker(Conformance):
    algo = "loha"
    options: ClassVar = {"use_tucker": True}
    kinds = ("conv3x3", "dilated", "grouped", "conv1d", "conv3d")
    spread = 0.5


class TestScalar(Conformance):
    algo = "loha"
    options: ClassVar = {"use_scalar": True, "rs_lora": True}
    kinds = VARIANT


class TestDoRA(Conformance):
    algo = "loha"
    options: ClassVar = {"weight_decompose": True, "wd_on_out": False}
    kinds = VARIANT
    exact_start = False


class TestRankWhereTheDeltaIsFormed(Conformance):
    algo = "loha"
    dim = 5
    kinds = VARIANT


LINEAR = {"hada_w1_a": (20, 4), "hada_w1_b": (4, 12), "hada_w2_a": (20, 4), "hada_w2_b": (4, 12)}
WIDE = {"hada_w1_a": (20, 4), "hada_w1_b": (4, 108), "hada_w2_a": (20, 4), "hada_w2_b": (4, 108)}
TUCKER = {
    "hada_w1_a": (4, 20), "hada_w1_b": (4, 12), "hada_w2_a": (4, 20), "hada_w2_b": (4, 12),
    "hada_t1": (4, 4, 3, 3), "hada_t2": (4, 4, 3, 3),
}  # fmt: skip


@pytest.mark.parametrize(
    "golden",
    [
        Golden(LINEAR, 2, (0.0395513, 0.32981, -0.000307187, -0.000120794, 0.00274236, 0.0197756)),
        Golden(WIDE, 2, (3.8727, 121.039, 0.166187, 0.179787, 0.122543, 1.93635), convolution=True),
        Golden(
            TUCKER, 2, (0.0090217, -0.072481, -0.000370712, -1.79653e-05, 5.05856e-06, 0.00451085), convolution=True
        ),
    ],
    ids=["linear", "conv3x3", "tucker"],
)
def test_numbers_of_lycoris(golden: Golden) -> None:
    golden.check(LoHa)


def test_rank_stabilised_scale_is_in_the_saved_alpha() -> None:
    torch.manual_seed(0)
    module = nn.Linear(12, 16)
    fresh = LoHa.create(module, dim=4, alpha=2.0, rs_lora=True)
    tensors = fresh.tensors()
    assert float(tensors["alpha"]) / 4 == pytest.approx(2.0 / math.sqrt(4))


@pytest.mark.parametrize("tucker", [False, True])
def test_it_is_a_lora_of_the_squared_rank(tucker: bool) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(6, 8, 3)
    loha = LoHa.create(module, dim=2, alpha=3.0, use_tucker=tucker)
    loha.factors["hada_w2_a"].data.normal_()
    up, down = loha.low_rank(weight_of(module)) or pytest.fail("no factors")
    assert up.shape == (8, 4)
    tensors = {"lora_up.weight": up[:, :, None, None], "lora_down.weight": down.reshape(4, 6, 3, 3)}
    lora = LoCon.from_tensors({**tensors, "alpha": torch.tensor(4.0)}, module)
    torch.testing.assert_close(lora.delta(weight_of(module)), loha.delta(weight_of(module)))


@pytest.mark.parametrize(
    ("width", "rank", "positions", "whole"),
    [(320, 4, 4096, False), (320, 16, 4096, True), (320, 4, 16, False), (320, 16, 16, False)],
)
def test_the_cheaper_form_is_chosen(width: int, rank: int, positions: int, whole: bool) -> None:
    module = nn.Linear(width, width)
    assert LoHa.create(module, dim=rank, alpha=1.0).prefers_weight(module, positions) == whole


def test_mistakes_are_explained() -> None:
    module = nn.Linear(12, 16)
    with pytest.raises(MixshowError, match="rank of at most 12 for a weight \\[16, 12\\], found 13"):
        LoHa.create(module, dim=13, alpha=1.0)
    with pytest.raises(MixshowError, match="expected a Linear"):
        LoHa.create(nn.LayerNorm(4), dim=1, alpha=1.0)
    tensors = LoHa.create(module, dim=2, alpha=1.0).tensors()
    with pytest.raises(MixshowError, match=r"weight of shape \[8, 12\], found hada_w1_a \[16, 2\]"):
        LoHa.from_tensors(tensors, nn.Linear(12, 8))
    with pytest.raises(MixshowError, match="alpha: expected a number"):
        LoHa.from_tensors({**tensors, "alpha": torch.tensor(torch.inf)}, module)
