"""(IA)^3 on either side."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from mixshow.core.errors import MixshowError
from mixshow.lycoris.ia3 import IA3
from tests.lycoris.conformance import Conformance
from tests.lycoris.golden import Golden


class TestIA3(Conformance):
    algo = "ia3"
    exact_start = False  # the bias is added after the scaling, in another order than in the layer


class TestIA3OnInput(Conformance):
    algo = "ia3"
    options: ClassVar = {"train_on_input": True}
    kinds = ("linear", "conv3x3", "grouped")


@pytest.mark.parametrize(
    ("channels", "on_input", "numbers"),
    [
        (20, 0, (1.14501, -0.192679, 0.021252, -0.11971, 0.105971, 0.572503)),
        (12, 1, (1.19078, -0.207013, 0.021252, -0.0829084, 0.122029, 0.595388)),
    ],
    ids=["output", "input"],
)
def test_numbers_of_lycoris(channels: int, on_input: int, numbers: tuple[float, ...]) -> None:
    class Marked(Golden):
        def tensors(self) -> dict[str, torch.Tensor]:
            return {**super().tensors(), "on_input": torch.tensor(on_input)}

    Marked({"weight": (channels,)}, 1, numbers).check(IA3)  # type: ignore[arg-type]


def test_factors_of_another_number_of_channels_are_refused() -> None:
    module = Golden({}, 1, (0,) * 6).module()
    with pytest.raises(
        MixshowError, match=r"expected factors \[20\] on the output of a weight \[20, 12\], found \[12\]"
    ):
        IA3.from_tensors({"weight": torch.zeros(12), "on_input": torch.tensor(0)}, module)
