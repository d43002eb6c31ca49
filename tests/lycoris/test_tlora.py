"""T-LoRA against its formula in float64, the published golden vectors and finite differences."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris import create_network, load_network
from mixshow.lycoris.operation import module_operation
from mixshow.lycoris.timed_ranks import timed_ranks
from mixshow.lycoris.tlora import TLoRA
from tests.lycoris.conformance import Conformance
from tests.lycoris.golden import Golden
from tests.lycoris.rotations import LAYERS, filled, layer


def test_it_is_what_lycoris_computes() -> None:
    shapes = {"q_layer.weight": (4, 12), "p_layer.weight": (20, 4), "lambda_layer": (1, 4)}
    Golden(shapes, 2.0, (1.73342, -0.220818, -0.0618166, -0.147302, -0.179748, 0.86671)).check(TLoRA)


class TestTLoRA(Conformance):
    algo = "tlora"


class TestTLoRAFromAnywhere(Conformance):
    algo = "tlora"
    options: ClassVar = {"use_data_init": False}


def formula(adapter: TLoRA, mask: Tensor | float = 1.0) -> Tensor:
    start = adapter.start
    now = adapter.left @ torch.diag(adapter.values * mask) @ adapter.right
    before = start.left @ torch.diag(start.values * mask) @ start.right
    return (adapter.alpha / adapter.rank * (now - before)).reshape(adapter.shape)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("timestep", [None, 600])
def test_every_forward_is_the_formula(kind: str, dim: int, timestep: int | None) -> None:
    module, x = layer(kind)
    adapter = filled(TLoRA.create(module, dim=dim, alpha=3.0), size=0.1)
    torch.testing.assert_close(adapter.delta(module.weight), formula(adapter))
    mask = torch.ones(dim) if timestep is None else timed_ranks(timestep, 1000, dim)[0]
    adapter.set_timestep(timestep)
    expected = module_operation(module, x, 0.7 * formula(adapter, mask))
    torch.testing.assert_close(adapter.forward_change(x, module, 0.7, module(x)), expected)
    if timestep is None:
        torch.testing.assert_close(adapter.forward_whole(x, module, 0.7), module(x) + expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_each_picture_has_its_own_time(kind: str) -> None:
    module, x = layer(kind)
    x = torch.cat([x, x])[:2] if len(x) == 1 else x
    adapter = filled(TLoRA.create(module, dim=4, alpha=3.0), size=0.1)
    adapter.set_timestep(torch.tensor([100, 900]))
    together = adapter.forward_change(x, module, 0.7, None)
    for number, timestep in enumerate((100, 900)):
        adapter.set_timestep(timestep)
        torch.testing.assert_close(together[number], adapter.forward_change(x, module, 0.7, None)[number])
    adapter.set_timestep(torch.tensor([100, 900, 500]))
    with pytest.raises(MixshowError, match="batch of 3 pictures"):
        adapter.forward_change(x, module, 0.7, None)


def test_prompts_of_one_picture_share_its_time() -> None:
    module, _ = layer("linear")
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    adapter = filled(TLoRA.create(module, dim=4, alpha=3.0), size=0.1)
    adapter.set_timestep(torch.tensor([100, 900]))
    together = adapter.forward_change(x, module, 1.0, None)
    for number, timestep in enumerate((100, 900)):
        adapter.set_timestep(timestep)
        expected = adapter.forward_change(x, module, 1.0, None)
        torch.testing.assert_close(together[2 * number : 2 * number + 2], expected[2 * number : 2 * number + 2])


@pytest.mark.parametrize(("timestep", "used"), [(0, 8), (100, 7), (250, 6), (500, 4), (750, 2), (900, 1), (1000, 1)])
def test_ranks_by_time(timestep: int, used: int) -> None:
    assert timed_ranks(timestep, 1000, 8)[0].tolist() == [1.0] * used + [0.0] * (8 - used)


def test_a_change_of_mode_forgets_the_time() -> None:
    module, x = layer("linear")
    network = create_network({"unet": nn.ModuleDict({"a": module})}, algo="tlora", dim=4, alpha=2.0)
    adapter = filled(network.adapters["lora_unet_a"], size=0.1)
    whole = adapter.forward_change(x, module, 1.0, None)
    network.set_timestep(900)
    assert not torch.allclose(adapter.forward_change(x, module, 1.0, None), whole)
    network.eval()
    torch.testing.assert_close(adapter.forward_change(x, module, 1.0, None), whole)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("options", [{}, {"sig_type": "last"}, {"sig_type": "middle"}, {"use_data_init": False}])
def test_it_starts_at_no_change_with_gradients(kind: str, options: dict) -> None:
    module, x = layer(kind)
    adapter = TLoRA.create(module, dim=3, alpha=2.0, **options)
    assert not adapter.delta(module.weight).any()
    change = adapter.forward_change(x, module, 1.0, module(x))
    assert not change.any()
    (change * torch.randn_like(change)).sum().backward()
    assert all(value.grad is not None and value.grad.any() for value in adapter.parameters())


def test_the_start_is_of_the_singular_values_asked_for() -> None:
    module, _ = layer("linear")
    values = torch.linalg.svdvals(module.weight).float()
    for kind, expected in (("principal", values[:2]), ("middle", values[2:4]), ("last", values[-2:])):
        torch.testing.assert_close(TLoRA.create(module, dim=2, alpha=1.0, sig_type=kind).start.values, expected)
    with pytest.raises(MixshowError, match="did you mean 'last'"):
        TLoRA.create(module, dim=2, alpha=1.0, sig_type="lst")


@pytest.mark.parametrize("options", [{}, {"sig_type": "last"}, {"use_data_init": False}])
def test_files_give_the_same_change(options: dict) -> None:
    """A start that the weight does not tell is written, the weight's own is found again in it."""
    module, _ = layer("conv2d")
    adapter = filled(TLoRA.create(module, dim=3, alpha=2.0, **options), size=0.1).float()
    tensors = adapter.tensors()
    assert ("base_q" in tensors) == bool(options)
    again = TLoRA.from_tensors(tensors, module)
    torch.testing.assert_close(again.delta(module.weight), adapter.delta(module.weight), rtol=1e-5, atol=1e-6)


def test_a_written_start_is_what_lycoris_trains_on_with() -> None:
    theirs = pytest.importorskip("lycoris.modules", reason="lycoris-lora is not installed; it is in the extra 'dev'")
    module = nn.Linear(12, 20).requires_grad_(False)
    adapter = filled(TLoRA.create(module, dim=3, alpha=2.0, sig_type="last"), size=0.1).float()
    other = theirs.TLoraModule("layer", module, lora_dim=3, alpha=2.0)
    missing, unexpected = other.load_state_dict(adapter.tensors(), strict=False)
    assert not missing and not unexpected
    change, _ = other.get_diff_weight()
    torch.testing.assert_close(change, adapter.delta(module.weight), rtol=1e-5, atol=1e-6)


def test_low_rank_factors_travel_without_the_base() -> None:
    module, _ = layer("conv2d")
    adapter = filled(TLoRA.create(module, dim=3, alpha=2.0), size=0.1)
    up, down = adapter.low_rank(module.weight)
    assert up.shape == (20, 6) and down.shape == (6, 54)
    torch.testing.assert_close((up @ down).reshape(module.weight.shape), formula(adapter))
    elsewhere = TLoRA.from_tensors(adapter.tensors(), nn.Conv2d(6, 20, 3))  # the same file on another base
    assert not torch.allclose(elsewhere.delta(module.weight).double(), formula(adapter), atol=0.01)


def test_other_signs_of_the_singular_vectors_change_nothing() -> None:
    """They are arbitrary and differ between libraries; left as they are, the change is a difference of large parts."""
    module, _ = layer("linear")
    adapter = filled(TLoRA.create(module, dim=3, alpha=2.0), size=1e-3).float()
    for value in (adapter.left, adapter.start_left, adapter.right.T, adapter.start_right.T):
        value.data[:, 1] *= -1
    again = TLoRA.from_tensors(adapter.tensors(), module)
    torch.testing.assert_close(again.start.left, adapter.start.left)


def test_ranks_of_files_beyond_the_layers_are_padding() -> None:
    module = nn.Linear(3, 8).requires_grad_(False)
    tensors = {
        "alpha": torch.tensor(5.0),
        "q_layer.weight": torch.zeros(5, 3),
        "p_layer.weight": torch.zeros(8, 5),
        "lambda_layer": torch.zeros(1, 5),
    }
    adapter = TLoRA.from_tensors(tensors, module)
    torch.testing.assert_close(adapter.delta(module.weight), -module.weight)


def test_gradients_are_those_of_finite_differences() -> None:
    module, x = layer("linear")
    adapter = filled(TLoRA.create(module, dim=3, alpha=2.0), size=0.1)
    values = tuple(adapter.parameters())
    assert torch.autograd.gradcheck(lambda *_: adapter.forward_change(x, module, 0.7, None), values)
    adapter.set_timestep(torch.tensor([100, 900]))
    assert torch.autograd.gradcheck(lambda *_: adapter.forward_change(x, module, 0.7, None), values)


def test_a_small_change_survives_a_base_in_bfloat16() -> None:
    torch.manual_seed(0)
    module = nn.Linear(32, 32, bias=False).bfloat16().requires_grad_(False)
    adapter = filled(TLoRA.create(module, dim=4, alpha=4.0), size=1e-4)
    x = torch.randn(16, 32).bfloat16()
    expected = x.double() @ formula(adapter).T
    change = adapter.float().forward_change(x, module, 1.0, None)
    assert (change.double() - expected).norm() < 0.01 * expected.norm()


def test_bad_input() -> None:
    module, _ = layer("conv2d")
    with pytest.raises(MixshowError, match="rank of at most 20"):
        TLoRA.create(module, dim=21, alpha=1.0)
    with pytest.raises(MixshowError, match="min_rank of 1 to 4"):
        TLoRA.create(module, dim=4, alpha=1.0, min_rank=5)
    tensors = TLoRA.create(module, dim=4, alpha=1.0).tensors()
    with pytest.raises(MixshowError, match="other widths"):
        TLoRA.from_tensors({**tensors, "q_layer.weight": torch.zeros(4, 6, 1, 1)}, module)
    with pytest.raises(MixshowError, match="without it the strength is unknown"):
        TLoRA.from_tensors({name: value for name, value in tensors.items() if name != "alpha"}, module)


def test_networks_load_it_under_a_merged_one() -> None:
    """The start is found in the base's weight, not in what another network made of it."""
    module, _ = layer("linear")
    models = {"unet": nn.ModuleDict({"a": module})}
    network = create_network(models, algo="tlora", dim=3, alpha=2.0)
    filled(network.adapters["lora_unet_a"], size=0.1).float()
    expected = dict(network.deltas())["lora_unet_a"]
    other = create_network(models, algo="locon", dim=3)
    filled(other.adapters["lora_unet_a"])
    other.merge()
    again = load_network(models, network.file_tensors())
    torch.testing.assert_close(dict(again.deltas())["lora_unet_a"], expected, rtol=1e-5, atol=1e-5)
