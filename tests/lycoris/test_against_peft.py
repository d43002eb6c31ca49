"""Against PEFT: the same factors give the same outputs and gradients, wherever both mean the same.

Alpha is not the rank, and the multiplier not 1 where PEFT has one of the same meaning. Where PEFT means something else
(docs/lycoris.md, Elsewhere), the difference itself is checked.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixshow.lycoris import Network, create_network
from tests.lycoris.conformance import KINDS, Holder

peft = pytest.importorskip("peft", reason="PEFT is not installed; it is in the extra 'dev'")

NAME, RANK, ALPHA = "lycoris_layer", 2, 3.0
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}
CONVOLUTIONS = ("conv1x1", "conv3x3")
LAYERS = ("linear", "linear_no_bias", *CONVOLUTIONS)


@dataclasses.dataclass(frozen=True)
class Case:
    """
    Attributes:
        options: of `algo` here.
        config: PEFT's class of options, and `settings` for it beside the target.
        multiplier: 1 where PEFT has none, or another rule.
        bias: the layer keeps its bias.
        other_gradients: tensors whose gradients differ there.
    """

    algo: str
    config: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kinds: tuple[str, ...] = LAYERS
    dim: int = RANK
    multiplier: float = 0.5
    bias: bool = True
    other_gradients: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "-".join([self.algo, *(f"{key}={value}" for key, value in self.options.items())])

    def networks(self, kind: str, dtype: torch.dtype) -> tuple[Holder, Network, nn.Module, Tensor]:
        """A model, its network here, the same model changed by PEFT with the same factors, and an input."""
        model, x = model_of(kind, dtype, bias=self.bias)
        network = created(model, self.algo, self.dim, self.multiplier, **self.options)
        alpha = SCALE.get(self.config)
        scale = {} if alpha is None else {"r": self.dim, alpha: ALPHA}
        changed = theirs(model, self.config, **scale, **self.settings)
        own = dict(changed.named_parameters())
        with torch.no_grad():
            for key, tensor in network.file_tensors().items():
                if (name := peft_name(key)) in own:
                    own[name].copy_((tensor + start_of(key, model)).reshape(own[name].shape))
        if self.multiplier != 1:
            changed.scale_layer(self.multiplier)  # type: ignore[operator]
        return model, network, changed, x


CASES = (
    Case("locon", "LoraConfig", kinds=(*LAYERS, "conv3d")),
    Case("locon", "LoraConfig", {"rs_lora": True}, {"use_rslora": True}),
    Case(
        "locon", "LoraConfig", {"weight_decompose": True}, {"use_dora": True}, (*LAYERS, "conv3d"), multiplier=1.0,
        other_gradients=("lora_up.weight", "lora_down.weight"),
    ),
    Case("loha", "LoHaConfig", kinds=(*LAYERS, "grouped")),
    Case(
        "loha", "LoHaConfig", {"use_tucker": True}, {"use_effective_conv2d": True}, ("conv3x3", "grouped"),
        other_gradients=("hada_w1_a", "hada_w2_a"),
    ),
    Case("lokr", "LoKrConfig", {"factor": 2}, {"decompose_factor": 2}, (*LAYERS, "grouped", "conv1d")),
    Case("lokr", "LoKrConfig", {"decompose_both": True}, {"decompose_both": True}, ("linear", "conv3x3"), dim=1),
    Case(
        "lokr", "LoKrConfig", {"factor": 2, "use_tucker": True}, {"decompose_factor": 2, "use_effective_conv2d": True},
        ("conv3x3", "grouped"),
    ),
    Case("ia3", "IA3Config", {}, {"feedforward_modules": []}, (*LAYERS, "grouped"), multiplier=1.0, bias=False),
    Case("ia3", "IA3Config", {"train_on_input": True}, {"feedforward_modules": ["layer"]}, LAYERS, multiplier=1.0),
    Case("norm", "LNTuningConfig", kinds=("layer_norm", "group_norm"), multiplier=1.0),
)  # fmt: skip
PAIRS = [pytest.param(case, kind, id=f"{case}-{kind}") for case in CASES for kind in case.kinds]
SCALE = {"LoraConfig": "lora_alpha", "LoHaConfig": "alpha", "LoKrConfig": "alpha"}  # what PEFT calls alpha
RENAMED = {
    "lora_up.weight": "lora_B.default.weight",
    "lora_down.weight": "lora_A.default.weight",
    "dora_scale": "lora_magnitude_vector.default.weight",
    "weight": "ia3_l.default",
    "w_norm": "ln_tuning_layers.default.weight",
    "b_norm": "ln_tuning_layers.default.bias",
}


def peft_name(key: str) -> str:
    """PEFT's name for a tensor of a file."""
    part = key.partition(".")[2]
    return RENAMED.get(part, f"{part}.default")


def start_of(key: str, model: Holder) -> Tensor | float:
    """What PEFT's tensor is where ours is zero."""
    part = key.partition(".")[2]
    whole: dict[str, Any] = {"w_norm": model.layer.weight, "b_norm": model.layer.bias}
    return whole.get(part, 1.0 if part == "weight" else 0.0)


def model_of(kind: str, dtype: torch.dtype, *, bias: bool = True) -> tuple[Holder, Tensor]:
    make, shape = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model, x = Holder(make()), torch.randn(shape)
    if not bias:
        model.layer.bias = None
    return model.to(dtype).requires_grad_(False).eval(), x.to(dtype).requires_grad_(True)


def created(model: Holder, algo: str, dim: int, multiplier: float = 1.0, **options: Any) -> Network:
    """A network away from its start."""
    network = create_network({"model": model}, algo=algo, targets=[NAME], dim=dim, alpha=ALPHA, **options)
    generator = torch.Generator().manual_seed(9)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    network.multiplier = multiplier
    return network.to(model.layer.weight.dtype).eval()  # type: ignore[arg-type]


def theirs(model: Holder, config: str, **settings: Any) -> nn.Module:
    """A copy of a model's layer, changed by PEFT."""
    made = getattr(peft, config)(target_modules=["layer"], **settings)
    copied = peft.get_peft_model(copy.deepcopy(model), made)
    layer = copied.base_model.model.layer
    return layer.to(model.layer.weight.dtype).eval()


def output_and_gradients(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, the parameters' gradients being left with them, and the input's gradient."""
    x.grad = None
    output = module(x)
    generator = torch.Generator().manual_seed(8)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype))
    assert x.grad is not None
    return output.detach(), x.grad.clone()


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    expected = expected.reshape(found.shape)
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # what it says of any normalisation
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize(("case", "kind"), PAIRS)
def test_outputs_and_gradients_are_those_of_peft(case: Case, kind: str, dtype: torch.dtype) -> None:
    model, network, changed, x = case.networks(kind, dtype)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-7  # DoRA's norms get an epsilon here
    base = model(x).detach()
    with network:
        found, in_x = output_and_gradients(model, x)
    expected, expected_in_x = output_and_gradients(changed, x)
    assert (expected - base).norm() > 1e-2 * base.norm()
    assert_close(found, expected, tolerance)
    assert_close(in_x, expected_in_x, tolerance)
    there, compared = dict(changed.named_parameters()), 0
    for part, tensor in network.adapters[NAME].tensors().items():
        if tensor.requires_grad and part not in case.other_gradients:
            compared += 1
            gradient, other = tensor.grad, there[peft_name(f"{NAME}.{part}")].grad
            assert gradient is not None and other is not None
            assert_close(gradient, other, tolerance)
    assert compared


# --- where PEFT means something else


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
def test_peft_takes_the_norms_of_dora_for_constants_in_the_backward_pass(kind: str) -> None:
    """As the paper suggests to save memory; LyCORIS's gradients and the ones here are those of the output."""
    [case] = (case for case in CASES if "weight_decompose" in case.options)
    model, network, changed, x = case.networks(kind, torch.float64)
    with network:
        output_and_gradients(model, x)
    output_and_gradients(changed, x)
    tensors, layer = network.adapters[NAME].tensors(), copy.deepcopy(model.layer)
    up, down, scale = (tensors[part] for part in ("lora_up.weight", "lora_down.weight", "dora_scale"))
    for constant in (False, True):
        factors = [factor.detach().clone().requires_grad_(True) for factor in (up, down)]
        change = ALPHA / RANK * (factors[0].flatten(1) @ factors[1].flatten(1)).reshape(layer.weight.shape)
        whole = layer.weight + change
        norm = whole.flatten(1).norm(dim=1)
        norm = (norm.detach() if constant else norm).reshape(scale.shape)
        generator = torch.Generator().manual_seed(8)
        output = torch.func.functional_call(layer, {"weight": scale.detach() * whole / norm}, (x.detach(),))
        output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64))
        there = dict(changed.named_parameters())
        for factor, part in zip(factors, ("lora_up.weight", "lora_down.weight")):
            found = there[peft_name(f"{NAME}.{part}")].grad if constant else tensors[part].grad
            assert found is not None and factor.grad is not None
            assert_close(found, factor.grad, 1e-7)


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
def test_peft_scales_the_low_rank_part_of_dora_only(kind: str) -> None:
    """At multiplier 0 it has `m W / |W|` left; here that is the base."""
    [case] = (case for case in CASES if "weight_decompose" in case.options)
    model, network, changed, x = case.networks(kind, torch.float64)
    changed.scale_layer(0.0)  # type: ignore[operator]
    weight, scale = model.layer.weight, network.adapters[NAME].tensors()["dora_scale"]
    norm = weight.flatten(1).norm(dim=1).reshape(scale.shape)  # type: ignore[operator]
    expected = torch.func.functional_call(model.layer, {"weight": scale * weight / norm}, (x,))
    assert_close(changed(x), expected, 1e-7)
    network.multiplier = 0.0
    with network:
        assert torch.equal(model(x), model.layer(x))


def test_gradients_of_tucker_loha_are_wrong_there() -> None:
    """Of the two factors that the comparison above leaves out; finite differences tell that ours are right."""
    [case] = (case for case in CASES if case.algo == "loha" and "use_tucker" in case.options)
    model, network, changed, x = case.networks("conv3x3", torch.float64)
    with network:
        output_and_gradients(model, x)
    output_and_gradients(changed, x)
    there, adapter = dict(changed.named_parameters()), network.adapters[NAME]
    for part in case.other_gradients:
        tensor = adapter.tensors()[part]
        assert tensor.grad is not None
        other, step = there[peft_name(f"{NAME}.{part}")].grad, 1e-6
        generator = torch.Generator().manual_seed(2)
        direction = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad(), network:
                tensor.data += sign * step * direction
                output = model(x)
                tensor.data -= sign * step * direction
            weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
            values.append(float((output * weights).sum()))
        slope = (values[0] - values[1]) / (2 * step)
        assert float((tensor.grad * direction).sum()) == pytest.approx(slope, rel=1e-6)
        assert other is not None
        assert float((other * direction).sum()) != pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
def test_peft_scales_lokr_of_whole_factors_by_alpha_too(kind: str) -> None:
    case = Case("lokr", "LoKrConfig", {"full_matrix": True}, {}, dim=RANK, multiplier=1.0)
    model, network, changed, x = case.networks(kind, torch.float64)
    base = model(x)
    with network:
        change = model(x) - base
    assert change.norm() > 1e-2 * base.norm()
    assert_close(changed(x) - base, ALPHA / RANK * change, 1e-7)


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
def test_peft_scales_the_bias_along_with_ia3(kind: str) -> None:
    case = Case("ia3", "IA3Config", {}, {"feedforward_modules": []}, multiplier=1.0)
    model, network, changed, x = case.networks(kind, torch.float64)
    factors, bias = network.adapters[NAME].tensors()["weight"].flatten(), model.layer.bias
    assert isinstance(bias, Tensor)
    with network:
        found = model(x) + (factors * bias).reshape(-1, *[1] * (x.dim() - 2 if kind != "linear" else 0))
    assert_close(found, changed(x), 1e-7)


@pytest.mark.parametrize("config", ["OFTConfig", "BOFTConfig"])
def test_peft_rotates_the_other_side(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its change of W is ours of W's transpose; it has the upper triangle of Q, or (BOFT) counts half of `B - B^T`."""
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)  # or it looks for a CUDA compiler
    size, channels = 4, 16
    model = Holder(nn.Linear(12, channels, bias=False)).double().requires_grad_(False)
    turned = Holder(nn.Linear(channels, 12, bias=False)).double().requires_grad_(False)
    turned.layer.weight.copy_(model.layer.weight.T)  # type: ignore[operator]
    network = created(model, "diag-oft", dim=size)
    skew = network.adapters[NAME].tensors()["oft_blocks"].detach()
    skew = skew - skew.mT
    if config == "OFTConfig":
        layer = theirs(turned, config, r=0, oft_block_size=size, use_cayley_neumann=False)
        rows, columns = torch.triu_indices(size, size, 1)
        parameter, values = layer.oft_R.default.weight, skew[:, rows, columns]  # type: ignore[union-attr]
    else:
        layer = theirs(turned, config, boft_block_size=size, boft_n_butterfly_factor=1)
        parameter, values = layer.boft_R.default, skew[None]  # type: ignore[union-attr]
    with torch.no_grad():
        parameter.copy_(values)  # type: ignore[union-attr, operator]
        weight = layer(torch.eye(channels, dtype=torch.float64))  # row i: the change of unit vector i
        [(_, delta)] = network.deltas()
    expected = model.layer.weight + delta
    assert delta.norm() > 1e-2 * expected.norm()
    assert_close(weight, expected, 1e-6)
