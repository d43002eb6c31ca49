"""LoKr in every variant, and its files."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.algorithm import Algorithm, weight_of
from mixshow.lycoris.locon import LoCon
from mixshow.lycoris.lokr import LoKr
from tests.lycoris.conformance import Conformance
from tests.lycoris.golden import Golden

VARIANT = ("linear", "conv3x3", "grouped")


class TestLoKr(Conformance):
    algo = "lokr"
    dim = 1


class TestWhole(Conformance):
    algo = "lokr"
    options: ClassVar = {"factor": 4, "full_matrix": True}
    kinds = VARIANT


class TestBothLowRank(Conformance):
    algo = "lokr"
    dim = 1
    options: ClassVar = {"decompose_both": True, "rs_lora": True}
    kinds = ("linear", "conv3x3")


class TestTucker(Conformance):
    algo = "lokr"
    options: ClassVar = {"use_tucker": True, "factor": 2}
    kinds = ("conv3x3", "dilated", "conv1d")
    spread = 0.5


class TestUnbalancedScalar(Conformance):
    algo = "lokr"
    options: ClassVar = {"unbalanced_factorization": True, "factor": 2, "use_scalar": True}
    kinds = VARIANT


class TestDoRA(Conformance):
    algo = "lokr"
    dim = 1
    options: ClassVar = {"weight_decompose": True}
    kinds = VARIANT
    exact_start = False


FEW = {"lokr_w1": (4, 3), "lokr_w2_a": (5, 2), "lokr_w2_b": (2, 4)}
BOTH = {"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 3), "lokr_w2_a": (5, 1), "lokr_w2_b": (1, 4)}
WIDE = {"lokr_w1": (4, 3), "lokr_w2_a": (5, 2), "lokr_w2_b": (2, 36)}
TUCKER = {"lokr_w1": (4, 3), "lokr_w2_a": (2, 5), "lokr_w2_b": (2, 4), "lokr_t2": (2, 2, 3, 3)}
ROWS = {
    "whole": Golden(
        {"lokr_w1": (4, 3), "lokr_w2": (5, 4)}, 4, (2.03494, 0.950276, 0.0738485, 0.0103842, 0.178797, 1.01747)
    ),
    "low-rank": Golden(FEW, 1, (0.248124, -0.0571053, -0.00316764, 0.000813943, 0.0146189, 0.124062)),
    "both": Golden(BOTH, 0.5, (0.130014, 1.07277, -0.0019249, 0.0176499, -2.75812e-05, 0.0650069)),
    "unbalanced": Golden(
        {"lokr_w1": (5, 3), "lokr_w2": (4, 4)}, 2, (1.92396, -0.54689, 0.0738485, -0.00994438, 0.0702654, 0.961978)
    ),
    "conv3x3": Golden(WIDE, 1, (2.09951, 0.00674599, 0.00680604, -0.011836, 0.0822613, 1.04976), convolution=True),
    "tucker": Golden(
        TUCKER, 1, (0.0435854, 0.000861646, 0.000147713, -0.00232937, -7.5267e-05, 0.0217927), convolution=True
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_numbers_of_lycoris(row: str) -> None:
    ROWS[row].check(LoKr)


SHAPES = {
    "free": ((640, 320), {"dim": 16}, {"w1": (20, 16), "w2": (32, 20)}),
    "eight": ((640, 320), {"dim": 16, "factor": 8}, {"w1": (8, 8), "w2_a": (80, 16), "w2_b": (16, 40)}),
    "conv": ((640, 320, 3, 3), {"dim": 16, "factor": 8}, {"w1": (8, 8), "w2_a": (80, 16), "w2_b": (16, 360)}),
    "unbalanced": (
        (640, 320), {"dim": 16, "factor": 8, "unbalanced_factorization": True},
        {"w1": (80, 8), "w2_a": (8, 16), "w2_b": (16, 40)},
    ),
    "point": ((20, 12, 1, 1), {"dim": 99, "use_tucker": True}, {"w1": (4, 3), "w2": (5, 4, 1, 1)}),
    "core": (
        (20, 12, 3, 3), {"dim": 1, "factor": 2, "use_tucker": True},
        {"w1": (2, 2), "w2_a": (1, 10), "w2_b": (1, 6), "t2": (1, 1, 3, 3)},
    ),
    "both": (
        (640, 320), {"dim": 4, "decompose_both": True},
        {"w1_a": (20, 4), "w1_b": (4, 16), "w2_a": (32, 4), "w2_b": (4, 20)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHAPES)
def test_sizes_of_fresh_factors(case: str) -> None:
    shape, options, expected = SHAPES[case]
    out, inside, *kernel = shape
    module = nn.Conv2d(inside, out, (kernel[0], kernel[1])) if kernel else nn.Linear(inside, out)
    tensors = LoKr.create(module, alpha=1.0, **options).tensors()
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "alpha": (), **{f"lokr_{name}": size for name, size in expected.items()}
    }  # fmt: skip


def _randomised(algorithm: Algorithm) -> Algorithm:
    for parameter in algorithm.parameters():
        parameter.data.normal_()
    return algorithm


@pytest.mark.parametrize(
    ("options", "rank"),
    [({"dim": 1}, 3), ({"dim": 1, "decompose_both": True}, 1), ({"dim": 2, "factor": 2}, 4)],
    ids=["free", "both", "two"],
)
def test_low_rank_factors_make_a_lora(options: dict[str, int], rank: int) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(12, 20, 3)
    lokr = _randomised(LoKr.create(module, alpha=3.0, **options))  # type: ignore[arg-type]
    up, down = lokr.low_rank(weight_of(module)) or pytest.fail("no factors")
    assert up.shape == (20, rank)
    tensors = {"lora_up.weight": up[:, :, None, None], "lora_down.weight": down.reshape(rank, 12, 3, 3)}
    lora = LoCon.from_tensors({**tensors, "alpha": torch.tensor(float(rank))}, module)
    torch.testing.assert_close(lora.delta(weight_of(module)), lokr.delta(weight_of(module)))


@pytest.mark.parametrize("alpha", [{}, {"alpha": torch.tensor(torch.inf)}, {"alpha": torch.tensor([7])}])
def test_whole_factors_need_no_alpha(alpha: dict[str, Tensor]) -> None:
    module = nn.Linear(12, 20)
    w1, w2 = torch.randn(4, 3), torch.randn(5, 4)
    lokr = LoKr.from_tensors({"lokr_w1": w1, "lokr_w2": w2, **alpha}, module)
    torch.testing.assert_close(lokr.delta(weight_of(module)), torch.kron(w1, w2))
    assert torch.isfinite(lokr.tensors()["alpha"])


@pytest.mark.parametrize(
    ("width", "options", "positions", "whole"),
    [
        (320, {"dim": 4}, 4096, False),
        (320, {"dim": 999, "factor": 8}, 4096, True),
        (1280, {"dim": 999, "factor": 8}, 4096, False),
        (320, {"dim": 999, "factor": 2}, 4096, True),
    ],
    ids=["low-rank", "eight-320", "eight-1280", "two"],
)
def test_the_cheaper_form_is_chosen(width: int, options: dict[str, int], positions: int, whole: bool) -> None:
    module = nn.Linear(width, width)
    assert LoKr.create(module, alpha=1.0, **options).prefers_weight(module, positions) == whole  # type: ignore[arg-type]


def test_mistakes_are_explained() -> None:
    module = nn.Linear(12, 20)
    w1, w2 = torch.randn(4, 3), torch.randn(5, 4)
    with pytest.raises(MixshowError, match=r"of a weight \[24, 12\], found w1 \[4, 3\], w2 \[5, 4\]"):
        LoKr.from_tensors({"lokr_w1": w1, "lokr_w2": w2}, nn.Linear(12, 24))
    with pytest.raises(MixshowError, match="expected Kronecker factors"):
        LoKr.from_tensors({"lokr_w1": w1, "lokr_w2_a": torch.randn(5, 2)}, module)
    low = {"lokr_w2_a": torch.randn(5, 2), "lokr_w2_b": torch.randn(2, 4)}
    with pytest.raises(MixshowError, match="expected a tensor 'alpha'"):
        LoKr.from_tensors({"lokr_w1": w1, **low}, module)
    both = {"lokr_w1_a": torch.randn(4, 1), "lokr_w1_b": torch.randn(1, 3), "alpha": torch.tensor(1.0)}
    with pytest.raises(MixshowError, match=r"one rank, found ranks \[1, 2\]"):
        LoKr.from_tensors({**low, **both}, module)
