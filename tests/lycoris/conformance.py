"""The exam every algorithm takes: a subclass names the algorithm and its options, and inherits the checks.

    class TestLoCon(Conformance):
        algo = "locon"

Every check runs on tiny modules in float64 unless it is about another precision; alpha is not the rank.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixshow.core.errors import MixshowError
from mixshow.lycoris import Network, create_network, load_network
from mixshow.lycoris.algorithm import Algorithm
from mixshow.lycoris.operation import module_operation

# Modules with their inputs' shapes. Numbers are chosen so that input, output and weight differ in size.
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 16), (3, 5, 12)),
    "linear_no_bias": (lambda: nn.Linear(12, 16, bias=False), (5, 12)),
    "conv1x1": (lambda: nn.Conv2d(8, 16, 1), (2, 8, 3, 5)),
    "conv3x3": (lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1), (2, 8, 6, 5)),
    "dilated": (lambda: nn.Conv2d(8, 16, 3, dilation=2, padding="same", padding_mode="circular"), (1, 8, 6, 5)),
    "grouped": (lambda: nn.Conv2d(8, 16, 3, padding=1, groups=2), (2, 8, 5, 4)),
    "conv1d": (lambda: nn.Conv1d(8, 16, 3, padding=2, dilation=2), (2, 8, 9)),
    "conv3d": (lambda: nn.Conv3d(8, 16, (1, 2, 3), stride=(1, 2, 1)), (2, 8, 2, 4, 5)),
    "layer_norm": (lambda: nn.LayerNorm(12), (3, 5, 12)),
    "group_norm": (lambda: nn.GroupNorm(4, 16), (2, 16, 3, 5)),
    "rms_norm": (lambda: nn.RMSNorm(12), (3, 5, 12)),
}
LAYERS = ("linear", "linear_no_bias", "conv1x1", "conv3x3", "dilated", "grouped", "conv1d", "conv3d")
MULTIPLIERS = (1.0, 0.7, -0.5, 0.0)


class Holder(nn.Module):
    """One layer, as a model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Conformance:
    """
    Attributes:
        algo: the algorithm's name; `options` its own options.
        kinds: the modules of `KINDS` that it can change; on the other layers it must refuse.
        exact_start: a fresh network gives the base's bits; otherwise its values to 1e-6 (a norm divided by
            itself, a bias added after the product).
        proportional: the change is proportional to the multiplier.
        rank_dropout: rank dropout does something on the module kinds checked.
    """

    algo: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    dim: ClassVar[int] = 2
    alpha: ClassVar[float] = 3.0
    kinds: ClassVar[tuple[str, ...]] = LAYERS
    exact_start: ClassVar[bool] = True
    proportional: ClassVar[bool] = True
    spread: ClassVar[float] = 0.3  # of the values parameters are moved by, from where they start

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", cls.kinds)
        if "one_kind" in metafunc.fixturenames:  # for checks that are slow or do not depend on the module
            metafunc.parametrize("one_kind", cls.kinds[:1])
        if "two_kinds" in metafunc.fixturenames:
            wide = [kind for kind in ("conv3x3",) if kind in cls.kinds]
            metafunc.parametrize("two_kinds", [cls.kinds[0], *wide])

    def model(self, kind: str, dtype: torch.dtype = torch.float64) -> tuple[Holder, Tensor]:
        """A frozen model of one layer, and an input."""
        make, shape = KINDS[kind]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            layer = make()
            for parameter in layer.parameters():  # norms start at 1 and 0, which would hide mistakes
                parameter.data += 0.2 * torch.randn(parameter.shape)
            x = torch.randn(shape)
        return Holder(layer).to(dtype).requires_grad_(False), x.to(dtype)

    def fresh(self, model: nn.Module, **more: Any) -> Network:
        generator = torch.Generator().manual_seed(1)
        keywords = {"dim": self.dim, "alpha": self.alpha, **self.options, **more}
        # Named, because by default only layers are taken, and this may be a normalisation.
        return create_network(
            {"model": model}, algo=self.algo, targets=["lycoris_layer"], generator=generator, **keywords
        )

    def network(self, model: nn.Module, dtype: torch.dtype = torch.float64, **more: Any) -> Network:
        """A network away from its start, in evaluation mode."""
        network = self.fresh(model, **more).to(dtype)
        generator = torch.Generator().manual_seed(7)
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data += (self.spread * noise).to(dtype)
        network.eval()
        return network

    @staticmethod
    def adapter(network: Network) -> Algorithm:
        return network.adapters["lycoris_layer"]

    @staticmethod
    def expected(model: Holder, x: Tensor, adapter: Algorithm, multiplier: float) -> Tensor:
        """The output from the changed weight and bias."""
        layer: Any = model.layer
        bias, change = getattr(layer, "bias", None), adapter.bias_delta()
        if change is not None:
            bias = bias + multiplier * change
        return module_operation(layer, x, adapter.weight_at(layer.weight, multiplier), bias)

    # --- what it computes

    def test_a_fresh_network_changes_nothing(self, kind: str) -> None:
        model, x = self.model(kind, torch.float32)
        before = model(x)
        with self.fresh(model):
            tolerance = 0.0 if self.exact_start else 1e-6
            torch.testing.assert_close(model(x), before, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("multiplier", MULTIPLIERS)
    def test_forward_equals_merged_weights(self, kind: str, multiplier: float) -> None:
        model, x = self.model(kind)
        network = self.network(model)
        network.multiplier = multiplier
        before = model(x)
        with network:
            trained = model(x).detach()
            with torch.no_grad():
                inferred = model(x)
        network.merge()
        merged = model(x)
        network.unmerge()
        for found in (trained, inferred):
            torch.testing.assert_close(found, merged, rtol=1e-10, atol=1e-10)
        assert torch.equal(merged, before) == (multiplier == 0)

    @pytest.mark.parametrize("multiplier", MULTIPLIERS[:3])
    def test_every_form_of_the_forward_gives_the_same(self, kind: str, multiplier: float) -> None:
        model, x = self.model(kind)
        adapter = self.adapter(self.network(model))
        base, expected = model(x), self.expected(model, x, adapter, multiplier)
        for base_output in (base, None):
            found = base + adapter.forward_change(x, model.layer, multiplier, base_output)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
            with torch.no_grad():
                found = base + adapter.forward_change(x, model.layer, multiplier, base_output)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(adapter.forward_whole(x, model.layer, multiplier), expected, rtol=1e-10, atol=1e-10)

    def test_the_multiplier_keeps_its_rule(self, kind: str) -> None:
        model, _ = self.model(kind)
        adapter, weight = self.adapter(self.network(model)), model.layer.weight
        delta = adapter.delta(weight)
        assert delta.shape == weight.shape
        assert delta.norm() > 1e-3
        torch.testing.assert_close(adapter.weight_at(weight, 0.0), weight.data, rtol=0, atol=1e-12)
        torch.testing.assert_close(adapter.weight_at(weight, 1.0) - weight, delta, rtol=1e-9, atol=1e-12)
        proportional = torch.allclose(adapter.change_at(weight, 0.3), 0.3 * delta, rtol=1e-9, atol=1e-12)
        assert proportional == self.proportional

    def test_low_rank_factors_are_the_delta(self, kind: str) -> None:
        model, _ = self.model(kind)
        adapter, weight = self.adapter(self.network(model)), model.layer.weight
        factors = adapter.low_rank(weight)
        if factors is not None:
            torch.testing.assert_close(factors[0] @ factors[1], adapter.delta(weight).flatten(1), rtol=1e-9, atol=1e-12)

    def test_two_networks_add_their_changes_of_the_base(self, two_kinds: str) -> None:
        model, x = self.model(two_kinds)
        one, other = self.network(model), self.network(model)
        for parameter in other.parameters():
            parameter.data *= 0.9
        base, parts = model(x), []
        for network in (one, other):
            with network:
                parts.append(model(x) - base)
        with one, other:
            torch.testing.assert_close(model(x), base + parts[0] + parts[1], rtol=1e-9, atol=1e-9)
        one.merge()
        other.merge()
        torch.testing.assert_close(model(x), base + parts[0] + parts[1], rtol=1e-9, atol=1e-9)
        one.unmerge()
        torch.testing.assert_close(model(x), base + parts[1], rtol=1e-9, atol=1e-9)
        other.unmerge()
        assert torch.equal(model(x), base)

    # --- gradients

    def test_gradients_are_those_of_finite_differences(self, kind: str) -> None:
        model, x = self.model(kind)
        network = self.network(model)
        network.train()
        adapter = self.adapter(network)
        base = model(x).detach()
        target = torch.randn(base.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        forms: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda x: model(x),
            lambda x: base + adapter.forward_change(x, model.layer, 0.7, None),
            lambda x: adapter.forward_whole(x, model.layer, 0.7),
        )
        network.multiplier = 0.7
        with network:
            for form in forms:
                x.requires_grad_(True)
                network.zero_grad()
                (form(x) * target).sum().backward()
                for tensor in [*network.parameters(), x]:
                    gradient = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
                    step = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
                    found = float((gradient * step).sum())
                    values = []
                    with torch.no_grad():
                        start = tensor.data.clone()
                        for sign in (1, -1):
                            tensor.data = start + sign * 1e-6 * step
                            values.append(float((form(x) * target).sum()))
                        tensor.data = start
                    assert found == pytest.approx((values[0] - values[1]) / 2e-6, rel=2e-5, abs=1e-6)
                x.grad = None

    def test_only_its_own_tensors_get_gradients(self, kind: str) -> None:
        model, x = self.model(kind)
        network = self.network(model)
        with network:
            model(x).square().sum().backward()
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(parameter.grad is not None for parameter in network.parameters())

    def test_nothing_of_the_weights_size_is_kept_for_the_backward_pass(self, two_kinds: str) -> None:
        model, x = self.model(two_kinds, torch.float32)
        if model.layer.weight.dim() == 1:
            pytest.skip("a normalisation's weight is one number per channel")
        network = self.network(model, torch.float32)
        own = {tensor.data_ptr() for tensor in [*network.parameters(), *model.parameters(), x]}
        sizes: list[int] = []

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in own:
                sizes.append(tensor.numel())
            return tensor

        x.requires_grad_(True)
        with network, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x)
        assert model.layer.weight.numel() not in sizes

    # --- precision

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    @pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
    def test_a_small_change_is_not_lost_in_low_precision(
        self, two_kinds: str, dtype: torch.dtype, autocast: bool
    ) -> None:
        model, x = self.model(two_kinds, torch.float32)
        network = self.network(model, torch.float32)
        adapter = self.adapter(network)
        norm = float(adapter.delta(model.layer.weight).detach().norm())
        multiplier = 2e-3 * float(model.layer.weight.norm()) / norm
        base_dtype = torch.float32 if autocast else dtype
        model, x = model.to(base_dtype), x.to(dtype).to(base_dtype)
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
            base = model(x)
            found = adapter.forward_change(x, model.layer, multiplier, base)
        double, exact = copy.deepcopy(model).double(), copy.deepcopy(network).double()
        adapter = self.adapter(exact)
        expected = self.expected(double, x.double(), adapter, multiplier) - double(x.double())
        assert (found.double() - expected).norm() <= 0.02 * expected.norm()
        network.multiplier = multiplier
        with network, torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocast):
            output = model(x)
        assert output.dtype == base.dtype
        torch.testing.assert_close(output.float(), (base + found.to(base.dtype)).float(), rtol=0, atol=1e-2)

    def test_merging_into_16_bits_rounds_once_and_comes_out_again(self, two_kinds: str) -> None:
        model, _ = self.model(two_kinds, torch.bfloat16)
        network = self.network(model, torch.float32)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            expected = self.adapter(network).weight_at(model.layer.weight, 1.0).to(torch.bfloat16)
        network.merge()
        assert torch.equal(model.layer.weight, expected)
        network.unmerge()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    # --- on and off

    def test_it_comes_off_again_and_leaves_no_trace(self, kind: str) -> None:
        model, x = self.model(kind)
        network = self.network(model)
        before, keys, attributes = model(x), list(model.state_dict()), set(model.layer.__dict__)
        with pytest.raises(RuntimeError), network:
            assert not torch.equal(model(x), before)
            assert list(model.state_dict()) == keys
            raise RuntimeError
        network.merge()
        assert not torch.equal(model(x), before)
        assert list(model.state_dict()) == keys
        network.unmerge()
        assert torch.equal(model(x), before)
        assert set(model.layer.__dict__) == attributes

    # --- files

    def test_files_hold_all_of_it(self, kind: str, tmp_path: Path) -> None:
        model, _ = self.model(kind, torch.float32)
        network = self.network(model, torch.float32)
        network.save(tmp_path / "network.safetensors")
        again = load_network({"model": model}, tmp_path / "network.safetensors")
        for (name, delta), (other_name, other) in zip(network.deltas(), again.deltas()):
            assert name == other_name
            torch.testing.assert_close(other, delta, rtol=1e-6, atol=1e-7)
        first, second = network.file_tensors(), again.file_tensors()
        assert list(first) == list(second)
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())

    def test_training_can_go_on_from_the_state(self, one_kind: str) -> None:
        model, _ = self.model(one_kind, torch.float32)
        network, again = self.network(model, torch.float32), self.fresh(model)
        again.load_state_dict(network.state_dict())
        for (_, delta), (_, other) in zip(network.deltas(), again.deltas()):
            assert torch.equal(delta, other)

    def test_tensors_of_other_widths_are_refused(self, two_kinds: str) -> None:
        model, _ = self.model(two_kinds, torch.float32)
        tensors = self.network(model, torch.float32).file_tensors()
        for key, tensor in tensors.items():
            if tensor.dim() < 1:
                continue
            wrong = {**tensors, key: torch.cat([tensor, tensor], 0)[: tensor.shape[0] + 1]}
            with pytest.raises(MixshowError, match="expected"):
                load_network({"model": model}, wrong)

    def test_weights_that_cannot_be_changed_are_refused(self, one_kind: str) -> None:
        model, _ = self.model(one_kind, torch.float32)
        tensors = self.network(model, torch.float32).file_tensors()
        with pytest.raises(MixshowError, match="meta device"):
            self.fresh(copy.deepcopy(model).to("meta"))
        quantised = copy.deepcopy(model)
        quantised.layer.weight = nn.Parameter(quantised.layer.weight.to(torch.int8), requires_grad=False)
        for make in (self.fresh, lambda model: load_network({"model": model}, tensors)):
            with pytest.raises(MixshowError, match="quantised"):
                make(quantised)

    # --- in training

    @pytest.mark.parametrize("name", ["dropout", "rank_dropout", "module_dropout"])
    def test_dropouts_act_in_training_only(self, two_kinds: str, name: str) -> None:
        model, x = self.model(two_kinds)
        network = self.network(model, **{name: 0.5})
        base = model(x)
        with network, torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            change = model(x) - base
            assert torch.equal(model(x) - base, change)
            network.train()
            changes = torch.stack([model(x) - base for _ in range(60)])
        different = [not torch.allclose(found, change, rtol=1e-6, atol=1e-9) for found in changes]
        absent = [bool(found.abs().max() < 1e-12) for found in changes]
        scale = change.abs().max()
        if name == "module_dropout":
            assert 15 < sum(absent) < 45
            assert sum(absent) == sum(different)
        elif name == "dropout":
            assert all(different)
            kept = changes.abs() > 1e-9 * scale
            assert float(kept.double().mean()) == pytest.approx(0.5, abs=0.1)
            moved = change.abs() > 1e-6 * scale
            torch.testing.assert_close(
                (changes / change)[:, moved][kept[:, moved]], torch.full_like(changes[:, moved][kept[:, moved]], 2.0)
            )
        else:
            assert sum(different) > 30

    @pytest.mark.parametrize("reentrant", [False, True], ids=["plain", "reentrant"])
    def test_gradient_checkpointing_gives_the_same_gradients(self, one_kind: str, reentrant: bool) -> None:
        model, x = self.model(one_kind)
        network = self.network(model, dropout=0.3, rank_dropout=0.3)
        network.train()
        x.requires_grad_(True)
        found = []
        for run in (model, lambda x: checkpoint(model, x, use_reentrant=reentrant)):
            with network, torch.random.fork_rng(devices=[]):
                torch.manual_seed(2)
                network.zero_grad()
                run(x).square().sum().backward()
            found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        assert found[0]
        for one, other in zip(*found):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    def test_a_compiled_model_follows(self, one_kind: str) -> None:
        model, x = self.model(one_kind)
        network = self.network(model)
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager")
        base = compiled(x)
        with network:
            for network.multiplier in (1.0, 0.5):
                torch.testing.assert_close(compiled(x), model(x), rtol=1e-9, atol=1e-9)
                gradients = []
                for run in (compiled, model):
                    network.zero_grad()
                    run(x).square().sum().backward()
                    gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
                for one, other in zip(*gradients):
                    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        assert torch.equal(compiled(x), base)

    def test_norms_can_be_bounded(self, kind: str) -> None:
        model, _ = self.model(kind)
        adapter, weight = self.adapter(self.network(model)), model.layer.weight
        norm = adapter.regularised_norm(weight)
        assert adapter.scale_norm(2 * norm, weight) == pytest.approx(norm)
        assert adapter.regularised_norm(weight) == pytest.approx(norm)
        assert adapter.scale_norm(norm / 3, weight) == pytest.approx(norm / 3, rel=2e-3)
        assert adapter.regularised_norm(weight) == pytest.approx(norm / 3, rel=2e-3)
