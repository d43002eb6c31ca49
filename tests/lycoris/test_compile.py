"""Networks in models that torch's compiler turned into C++: forward and gradients are those of the eager model.

Every algorithm is traced in the conformance suite, with a backend that runs the trace as it is; this builds code of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mixshow.lycoris import Network, create_network


class Model(nn.Module):
    """A convolution, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.linear = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.relu(self.conv(x)).movedim(1, -1))


@pytest.fixture
def inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiler as new, its files in a folder of the test's."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        pytest.skip(f"torch.compile needs a C++ compiler, there is no {compiler}")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        pytest.skip("torch.compile needs Python's headers, they are not installed")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def network_of(model: nn.Module, algo: str, seed: int) -> Network:
    """A network on every layer, away from its start."""
    network = create_network({"model": model}, algo=algo, dim=2, alpha=3.0).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


@pytest.mark.slow
@pytest.mark.parametrize("algos", [("locon",), ("loha",), ("locon", "loha")], ids="+".join)
def test_a_model_in_cpp_follows(algos: tuple[str, ...], inductor: None) -> None:
    torch.manual_seed(0)
    model, x = Model().double().requires_grad_(False), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    base = model(x)
    networks = [network_of(model, algo, seed) for seed, algo in enumerate(algos)]
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    found: list[list[Tensor]] = []
    with contextlib.ExitStack() as attached:
        for network in networks:
            attached.enter_context(network)
        for run in (compiled, model):
            for network in networks:
                network.zero_grad()
            output = run(x)
            output.square().sum().backward()
            gradients = [parameter.grad for network in networks for parameter in network.parameters()]
            found.append([output.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)])
    (output, *gradients), (expected, *expected_gradients) = found
    assert (expected - base).norm() > 1e-2 * base.norm()
    assert len(gradients) == len(expected_gradients) == sum(len(list(n.parameters())) for n in networks)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)
    for gradient, expected_gradient in zip(gradients, expected_gradients):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(compiled(x), base, rtol=1e-9, atol=1e-9)
