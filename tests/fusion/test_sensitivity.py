"""Moments in which inputs count by how much the prediction depends on what is made of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.edlora.concept import save_concept
from mixshow.fusion.collect import Collection, spatial_statistics
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.origin import Origin, Origins
from mixshow.fusion.sensitivity import SensitivityRecorder, backward_bytes
from mixshow.fusion.statistics import input_rows
from mixshow.fusion.wide import KeptRows, RowSampling
from mixshow.models import Base
from tests.fusion.test_fuse import hooks, state
from tests.tiny import tiny_concept

MOMENTS = RowSampling(width=10_000, limit=10)
SMALL = Collection(picture_prompts=["{concept}", "a {concept} in the rain"], steps=2, sensitive=True)


class Net(nn.Module):
    """Layers of all kinds, two of which read the same, and one that does not see the picture."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(1, 3, 2), nn.LayerNorm(3)
        self.one, self.two, self.time = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor, time: Tensor) -> SimpleNamespace:
        hidden = self.norm(torch.tanh(self.conv(x)).flatten(2).mT)
        shift = self.time(time)[:, None]
        return SimpleNamespace(sample=torch.sigmoid(self.one(hidden) * self.two(hidden) + shift).mean(1))


@pytest.fixture
def net() -> Net:
    return Net().requires_grad_(False)


def recorded(net: Net, x: Tensor, time: Tensor, **more: object) -> dict:
    """Over all signs of the prediction, whose mean is exact."""
    modules = {name: module for name, module in net.named_modules() if name}
    with SensitivityRecorder(modules, sampling=MOMENTS, **more) as recorder:
        for signs in itertools.product((-1.0, 1.0), repeat=2):
            recorder.passed(net, x, torch.tensor(signs).expand(len(x), 2), time)
    return recorder.statistics()


def weights(net: Net, name: str, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a layer's input, and tr(J^T J) of each from jacobians."""
    module, found = net.get_submodule(name), {}
    handle = module.register_forward_hook(lambda m, a, y: found.update(x=a[0].detach(), y=y.detach()))
    net(x, time)
    handle.remove()

    def with_output(y: Tensor) -> Tensor:
        handle = module.register_forward_hook(lambda *_: y)
        try:
            return net(x, time).sample
        finally:
            handle.remove()

    jacobian = torch.autograd.functional.jacobian(with_output, found["y"]).square().sum((0, 1))
    outputs = jacobian.movedim(1, -1) if name == "conv" else jacobian
    return input_rows(module, found["x"]), outputs.flatten(0, -2).sum(-1)


@pytest.mark.parametrize("name", ["conv", "time"])
def test_inputs_count_by_the_prediction_s_derivative(net: Net, name: str) -> None:
    x, time = torch.randn(3, 1, 4, 4), torch.randn(3, 4)
    rows, expected = weights(net, name, x, time)
    found = recorded(net, x, time)[name]
    torch.testing.assert_close(found.moment / 4, ((rows * expected[:, None]).T @ rows).double(), rtol=1e-4, atol=1e-6)
    assert found.rows == 4 * len(rows)


def test_a_layer_s_moment_does_not_depend_on_which_others_are_recorded(net: Net) -> None:
    x, time = torch.randn(2, 1, 4, 4), torch.randn(2, 4)
    found = recorded(net, x, time)
    for name in ("one", "two"):
        rows, weight = weights(net, name, x, time)
        expected = ((rows * weight[:, None]).T @ rows).double()
        torch.testing.assert_close(found[name].moment / 4, expected, rtol=1e-4, atol=1e-6)
    with SensitivityRecorder({"two": net.two}, sampling=MOMENTS) as recorder:
        for signs in itertools.product((-1.0, 1.0), repeat=2):
            recorder.passed(net, x, torch.tensor(signs).expand(2, 2), time)
    assert torch.equal(recorder.statistics()["two"].moment, found["two"].moment)


def test_parameters_that_want_gradients_get_none(net: Net) -> None:
    x, time = torch.randn(2, 1, 4, 4), torch.randn(2, 4)
    expected = recorded(net, x, time)
    net.requires_grad_(True)
    found = recorded(net, x, time)
    assert found.keys() == expected.keys() and "time" in found
    assert all(torch.equal(found[name].moment, expected[name].moment) for name in found)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


def test_constant_inputs_and_channels_of_normalisations_are_weighed_too(net: Net) -> None:
    x, time = torch.randn(2, 1, 4, 4), torch.randn(2, 4)
    found = recorded(net, x, time, extended=["norm", "time"])
    rows, weight = weights(net, "time", x, time)
    longer = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    torch.testing.assert_close(
        found["time"].moment / 4, ((longer * weight[:, None]).T @ longer).double(), rtol=1e-4, atol=1e-6
    )
    rows, weight = weights(net, "norm", x, time)
    channels = torch.stack([rows, torch.ones_like(rows)], -1).transpose(0, 1)
    expected = (channels * weight[:, None]).mT @ channels
    torch.testing.assert_close(found["norm"].moment / 4, expected.double(), rtol=1e-4, atol=1e-6)


def test_rows_of_wide_inputs_are_kept_with_their_weights(net: Net) -> None:
    x, time = torch.randn(3, 1, 4, 4), torch.randn(3, 4)
    wide = RowSampling(width=3, limit=1000)  # the convolution's, of width 4
    with SensitivityRecorder({"conv": net.conv}, sampling=wide) as recorder:
        for signs in itertools.product((-1.0, 1.0), repeat=2):
            recorder.passed(net, x, torch.tensor(signs).expand(3, 2), time)
    found = recorder.statistics()["conv"]
    assert isinstance(found, KeptRows)
    torch.testing.assert_close(found.moment, recorded(net, x, time)["conv"].moment, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def layers(tiny: Base) -> list[Layer]:
    return changed_layers(tiny, [Member(tiny_concept(tiny, "duck"))], Stage.SPATIAL)


def test_recording_leaves_the_model_alone_and_does_not_depend_on_batches(tiny: Base, layers: list[Layer]) -> None:
    before, hooks_before = state(tiny), hooks(tiny)
    flags = [parameter.requires_grad for parameter in tiny.unet.parameters()]
    tiny.unet.requires_grad_(True)
    try:
        prompts = ["a dog", "a dog in the rain"]
        together = spatial_statistics(tiny, layers, prompts, SMALL)
        single = spatial_statistics(tiny, layers, prompts, dataclasses.replace(SMALL, batch_size=1))
        assert all(parameter.grad is None for parameter in tiny.unet.parameters())
    finally:
        for parameter, flag in zip(tiny.unet.parameters(), flags):
            parameter.requires_grad_(flag)
    assert hooks(tiny) == hooks_before and all(torch.equal(value, before[key]) for key, value in state(tiny).items())
    assert set(together) == {layer.path for layer in layers}
    # Of attention over one position queries and keys decide nothing: what is left of their weights is rounding.
    largest = max(float(found.moment.max()) for found in together.values())
    for path, found in together.items():
        assert found.rows == single[path].rows
        torch.testing.assert_close(found.moment, single[path].moment, rtol=1e-3, atol=1e-7 * largest)
        assert float(torch.linalg.eigvalsh(found.moment).min()) >= -1e-6 * float(found.moment.diagonal().sum())


def test_weights_differ_from_row_to_row(tiny: Base, layers: list[Layer]) -> None:
    plain = spatial_statistics(tiny, layers, ["a dog"], dataclasses.replace(SMALL, sensitive=False))
    weighed = spatial_statistics(tiny, layers, ["a dog"], SMALL)
    apart = 0
    for path in plain:
        one, other = (found[path].moment / found[path].moment.diagonal().sum() for found in (plain, weighed))
        apart += float((one - other).norm()) > 1e-3 * float(one.norm())
    assert apart > len(plain) / 2


@pytest.fixture
def stage(tiny: Base, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("duck", "fox")):
        save_concept(tiny_concept(tiny, name, seed=number), f"{name}.safetensors")
    Path("fuse.yml").write_text(
        f"base: {tiny_folder}\nconcepts: [{{file: duck.safetensors}}, {{file: fox.safetensors}}]\noutput: fused\n"
        "statistics: {steps: 1, text_prompts: ['a {concept}'], picture_prompts: ['{concept}'], "
        "row_weights: sensitivity}\nrefine: {method: none}\nanchor: {captions: ['a dog']}\n"
        "report: {steps: 1, prompts: ['a {concept} in the rain'], captions: ['a boy']}\n"
    )
    return tmp_path


def test_the_command_weighs_rows_and_tells_files_apart(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", "fuse.yml", "statistics.keep=true"]) == 0
    assert main(["fuse", "fuse.yml", "statistics.row_weights=equal", "output=plain"]) == 0
    weighed, plain = (json.loads((stage / name / "fusion_report.json").read_text()) for name in ("fused", "plain"))
    assert weighed["held_out"]["errors"] != plain["held_out"]["errors"]
    file = "fused/statistics/duck.stats.safetensors"
    kept = f"concepts=[{{file: duck.safetensors, statistics: {file}}}, {{file: fox.safetensors}}]"
    assert main(["fuse", "fuse.yml", kept, "output=again", "report.heldout=false"]) == 0
    capsys.readouterr()
    assert main(["fuse", "fuse.yml", kept, "statistics.row_weights=equal", "output=mixed"]) == EXIT_USER_ERROR
    assert "recorded with row_weights sensitivity, not equal" in capsys.readouterr().err
    assert main(["fuse", "fuse.yml", "solver.objective=huber"]) == EXIT_USER_ERROR
    assert "row_weights: sensitivity is for solver.objective=squares" in capsys.readouterr().err


def test_files_without_weights_of_rows_are_of_equal_ones(tiny: Base) -> None:
    origin = Origins(tiny, Collection(), ["a dog"]).of(None)
    older = {key: value for key, value in origin.to_json().items() if key != "row_weights"}
    assert Origin.from_json(older) == origin
    assert Origins(tiny, Collection(sensitive=True), ["a dog"]).of(None).key() != origin.key()


def test_what_a_backward_pass_keeps_is_counted_once_and_without_weights() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).requires_grad_(False)
    assert backward_bytes(net, torch.randn(3, 4)) == 3 * 8 * 4  # what the hyperbolic tangent gave
    learning = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    assert backward_bytes(learning, torch.randn(3, 4)) == 3 * (4 + 8) * 4
