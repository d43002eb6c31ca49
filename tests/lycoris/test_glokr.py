"""GLoKr against its definition."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris import create_network, load_network
from mixshow.lycoris.algorithm import weight_of
from mixshow.lycoris.glokr import GLoKr
from tests.lycoris.conformance import Conformance, Holder


class TestGLoKr(Conformance):
    algo = "glokr"
    dim = 1


class TestTuckerScalar(Conformance):
    algo = "glokr"
    options: ClassVar = {"factor": 2, "use_tucker": True, "use_scalar": True, "rs_lora": True}
    kinds = ("linear", "conv3x3")
    spread = 0.5


@pytest.mark.parametrize("whole", [False, True])
def test_it_is_its_definition(whole: bool) -> None:
    """`W' = W + s (W kron(A) + kron(B))`, W meeting A on its input channels."""
    torch.manual_seed(0)
    module = nn.Conv2d(6, 8, 3).double()
    weight = weight_of(module)
    a = torch.randn(2, 2).double(), torch.randn(3, 3).double()
    up, down = torch.randn(4, 2).double(), torch.randn(2, 3 * 9).double()
    b = torch.randn(2, 2).double(), up @ down
    tensors = {"glokr_a_w1": a[0], "glokr_a_w2": a[1], "glokr_b_w1": b[0], "alpha": torch.tensor(3.0)}
    tensors |= {"glokr_b_w2": b[1]} if whole else {"glokr_b_w2_a": up, "glokr_b_w2_b": down}
    found = GLoKr.from_tensors(tensors, module).double().delta(weight)
    product = torch.kron(b[0], b[1].reshape(4, 3 * 9)).reshape(8, 6, 3, 3)
    expected = torch.einsum("ocuv,cd->oduv", weight, torch.kron(*a)) + product
    torch.testing.assert_close(found, expected * (1.0 if whole else 1.5), rtol=1e-5, atol=1e-5)


def test_other_programs_read_its_deltas() -> None:
    torch.manual_seed(0)
    model = Holder(nn.Linear(12, 16))
    network = create_network({"unet": model}, algo="glokr", dim=1)
    for parameter in network.parameters():
        parameter.data.normal_()
    x = torch.randn(3, 12)
    with network:
        expected = model(x)
    tensors = {f"{name}.diff": delta.detach() for name, delta in network.deltas()}
    with load_network({"unet": model}, tensors):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_mistakes_are_explained() -> None:
    tensors = GLoKr.create(nn.Linear(12, 16), dim=1, alpha=1.0).tensors()
    with pytest.raises(MixshowError, match="expected Kronecker factors"):
        GLoKr.from_tensors(tensors, nn.Linear(10, 16))
    tensors |= {"glokr_b_w2_a": torch.zeros(4, 2), "glokr_b_w2_b": torch.zeros(2, 4)}
    with pytest.raises(MixshowError, match="of one rank, found 1 and 2"):
        GLoKr.from_tensors(tensors, nn.Linear(12, 16))
