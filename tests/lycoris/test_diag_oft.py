"""Diag-OFT against an explicit inverse in float64, the published golden vectors and finite differences."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris import load_network
from mixshow.lycoris.cayley import rotation_changes
from mixshow.lycoris.diag_oft import DiagOFT
from mixshow.lycoris.operation import module_operation
from tests.lycoris.conformance import Conformance
from tests.lycoris.golden import Golden
from tests.lycoris.rotations import LAYERS, filled, layer, rotations

GOLDEN = {
    "linear": Golden(
        {"oft_blocks": (5, 4, 4)}, 0.0, (3.46628, 2.17468, 0.116187, 0.107491, 0.0118687, 1.73314)
    ),
    "conv": Golden(
        {"oft_blocks": (5, 4, 4)}, 0.0, (11.8352, -0.448352, 0.210652, -0.208241, -0.415933, 5.9176), convolution=True
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", GOLDEN.values(), ids=list(GOLDEN))
def test_it_is_what_lycoris_computes(row: Golden) -> None:
    row.check(DiagOFT)


def test_constraint_and_rescaling_are_what_lycoris_computes() -> None:
    """At multiplier 1: elsewhere the rescaling is interpolated here too, and 0 is the base itself."""
    row = Golden({"oft_blocks": (5, 4, 4), "rescale": (20, 1)}, 0.02, (0,) * 6)
    module, tensors = row.module(), row.tensors()
    delta = DiagOFT.from_tensors({**tensors, "rescale": tensors["rescale"] + 1}, module).delta(module.weight).detach()
    found = (delta.norm(), delta.sum(), delta[0, 0], delta[7, 5], delta[19, -1])
    expected = (1.28231, 0.346765, 0.0982726, 0.0598192, 0.0933817)
    assert list(map(float, found)) == pytest.approx(expected, rel=2e-5, abs=1e-6)


class TestDiagOFT(Conformance):
    algo = "diag-oft"
    options: ClassVar = {"constraint": 0.02}


class TestRescaledDiagOFT(Conformance):
    algo = "diag-oft"
    dim = 4
    options: ClassVar = {"rescaled": True}
    proportional = False


def reference(adapter: DiagOFT, weight: Tensor, multiplier: float) -> Tensor:
    turns = rotations(adapter.blocks, adapter.constraint * len(weight), multiplier)
    turned = torch.block_diag(*turns.mT) @ weight.flatten(1)
    rescale = 1.0 if adapter.rescale is None else 1 + multiplier * (adapter.rescale.flatten(1) - 1)
    return (rescale * turned).reshape(weight.shape)


@pytest.mark.parametrize("options", [{}, {"constraint": 0.01}, {"rescaled": True}, {"constraint": 1.0}])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("multiplier", [1.0, 0.6])
def test_weight_and_output_turn_as_written_out(kind: str, options: dict, multiplier: float) -> None:
    module, x = layer(kind)
    adapter = filled(DiagOFT.create(module, dim=4, alpha=1.0, **options))
    changed = reference(adapter, module.weight, multiplier)
    torch.testing.assert_close(adapter.weight_at(module.weight, multiplier), changed)
    if kind != "grouped":  # channels of different groups read different inputs: only the weight can be turned
        expected = module_operation(module, x, changed - module.weight)
        output = module_operation(module, x, module.weight)
        torch.testing.assert_close(adapter.output_change(module, output, multiplier), expected)


def test_turning_the_weight_is_chosen_where_inputs_are_few() -> None:
    wide, narrow = nn.Linear(512, 64), nn.Linear(4, 64)
    adapter = DiagOFT.create(wide, dim=8, alpha=1.0)
    assert not adapter.prefers_weight(wide, positions=4096)
    assert adapter.prefers_weight(narrow, positions=4096)


@pytest.mark.parametrize("constraint", [0.0, 0.01])
def test_gradients_of_the_turned_output_are_those_of_finite_differences(constraint: float) -> None:
    module, x = layer("linear")
    adapter = filled(DiagOFT.create(module, dim=4, alpha=1.0, constraint=constraint, rescaled=True))
    output = module(x).detach().requires_grad_(True)
    values = (output, *adapter.parameters())
    assert torch.autograd.gradcheck(lambda *_: adapter.output_change(module, output, 0.7), values)


def test_rotations_start_at_none_with_a_gradient_also_under_a_constraint() -> None:
    blocks = torch.zeros(3, 4, 4, requires_grad=True)
    change = rotation_changes(blocks, limit=0.5)
    assert not change.any()
    change[:, 0, 1].sum().backward()
    assert blocks.grad is not None and blocks.grad.isfinite().all() and blocks.grad.any()


def test_rotations_are_orthogonal() -> None:
    turn = rotation_changes(torch.randn(3, 6, 6, dtype=torch.float64)) + torch.eye(6)
    torch.testing.assert_close(turn @ turn.mT, torch.eye(6, dtype=torch.float64).expand(3, 6, 6))


def test_a_small_turn_survives_a_base_in_bfloat16() -> None:
    torch.manual_seed(0)
    module = nn.Linear(32, 32, bias=False).bfloat16().requires_grad_(False)
    adapter = DiagOFT.create(module, dim=4, alpha=1.0)
    adapter.blocks.data = 1e-4 * torch.randn_like(adapter.blocks)
    x = torch.randn(16, 32).bfloat16()
    exact = DiagOFT.delta(adapter.double(), module.weight.double())
    expected = x.double() @ exact.T
    change = adapter.float().output_change(module, module(x), 1.0)
    assert change.dtype is torch.bfloat16
    assert (change.double() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize(
    ("channels", "dim", "count", "size"),
    [(640, 16, 40, 16), (640, 4, 160, 4), (640, 32, 32, 20), (640, 64, 64, 10), (640, 10000, 32, 20)],
)
def test_block_sizes(channels: int, dim: int, count: int, size: int) -> None:
    assert DiagOFT.create(nn.Linear(2, channels), dim=dim, alpha=1.0).blocks.shape == (count, size, size)


def test_impossible_blocks_name_the_nearest_dim() -> None:
    with pytest.raises(MixshowError, match="blocks of 1; the nearest dim is 3"):
        DiagOFT.create(nn.Linear(2, 4), dim=4, alpha=1.0)
    with pytest.raises(MixshowError, match="exclude the module"):
        DiagOFT.create(nn.Linear(2, 7), dim=4, alpha=1.0)
    with pytest.raises(MixshowError, match="constraint: expected 0"):
        DiagOFT.create(nn.Linear(2, 8), dim=4, alpha=1.0, constraint=-1.0)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"oft_blocks": torch.zeros(3, 4, 4), "alpha": torch.zeros(())}, "for a weight"),
        ({"oft_blocks": torch.zeros(5, 4, 4)}, "holds the constraint"),
        ({"oft_blocks": torch.zeros(5, 4, 4), "alpha": torch.tensor(torch.inf)}, "found inf"),
        ({"oft_blocks": torch.zeros(5, 4, 4), "alpha": torch.zeros(()), "rescale": torch.ones(4, 1)}, "rescale"),
    ],
)
def test_files_for_other_layers_are_refused(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(MixshowError, match=message):
        DiagOFT.from_tensors(tensors, nn.Linear(6, 20))


def test_files_hold_the_constraint_as_alpha() -> None:
    module, _ = layer("conv2d")
    tensors = filled(DiagOFT.create(module, dim=4, alpha=3.0, constraint=0.25, rescaled=True)).tensors()
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "oft_blocks": (5, 4, 4),
        "alpha": (),
        "rescale": (20, 1, 1, 1),
    }
    assert float(tensors["alpha"]) == 0.25


@pytest.mark.parametrize("alpha", [1e-3, 0.0])
def test_files_of_sd_scripts_mean_what_they_mean_there(alpha: float) -> None:
    """Its rule scales Q by `(min(|Q|, C) + 1e-8) / (|Q| + 1e-8)`, so that a constraint of 0 allows no rotation."""
    model = nn.ModuleDict({"to_q": nn.Linear(6, 20)}).requires_grad_(False)
    blocks = torch.randn(5, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tensors = {"oft_unet_to_q.oft_blocks": blocks.float(), "oft_unet_to_q.alpha": torch.tensor(alpha)}
    network = load_network({"unet": model}, tensors)
    skew = blocks - blocks.mT
    limit = alpha * 20
    skew = skew * (min(float(skew.norm()), limit) + 1e-8) / (skew.norm() + 1e-8)
    turn = (torch.eye(4) + skew) @ torch.linalg.inv(torch.eye(4) - skew)
    weight = model["to_q"].weight.double()
    expected = torch.block_diag(*turn.mT) @ weight - weight
    (_, delta), *_ = network.deltas()
    torch.testing.assert_close(delta.double(), expected, rtol=1e-4, atol=1e-7)


def test_rank_dropout_leaves_whole_blocks_unturned() -> None:
    module, x = layer("linear")
    adapter = filled(DiagOFT.create(module, dim=4, alpha=1.0))
    adapter.dropouts = type(adapter.dropouts)(rank_dropout=0.5)
    torch.manual_seed(0)
    change = adapter.forward_change(x, module, 1.0, module(x)).reshape(-1, 5, 4)
    whole = adapter.eval().forward_change(x, module, 1.0, module(x)).reshape(-1, 5, 4)
    dropped = (change == 0).all(dim=(0, 2))
    assert 0 < dropped.sum() < 5
    torch.testing.assert_close(change[:, ~dropped], whole[:, ~dropped])
