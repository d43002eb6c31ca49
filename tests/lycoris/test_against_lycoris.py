"""Against lycoris-lora, file by file: the same tensors give the same outputs there and here, in both directions.

Alpha is not the rank and the multiplier not 1, except where the multiplier has another rule here (DoRA and rescaled
rotations, whose multiplier 0 is not the base there).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mixshow.lycoris import create_network, load_network
from tests.lycoris.conformance import KINDS, Holder

pytest.importorskip("lycoris", reason="lycoris-lora is not installed; it is in the extra 'dev'")

from lycoris import modules as theirs
from lycoris.wrapper import create_lycoris_from_weights

NAME = "lycoris_layer"


@dataclasses.dataclass(frozen=True)
class Case:
    """
    Attributes:
        options: the same here and there.
        own_loader: whether their loader reads their own file of this kind; otherwise a module made alike does.
        multiplier: 1 where the rules differ elsewhere.
    """

    algo: str
    module: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    kinds: tuple[str, ...] = ("linear", "conv1x1", "conv3x3")
    dim: int = 2
    own_loader: bool = True
    multiplier: float = 0.7

    def __str__(self) -> str:
        return "-".join([self.algo, *(f"{key}={value}" for key, value in self.options.items())])


_DORA = {"weight_decompose": True}
_IN = {"weight_decompose": True, "wd_on_out": False}
CASES = (
    Case("locon", "LoConModule"),
    Case("locon", "LoConModule", {"use_tucker": True}),
    Case("locon", "LoConModule", {"use_scalar": True}),
    Case("locon", "LoConModule", {"rs_lora": True}),
    Case("locon", "LoConModule", _DORA, multiplier=1.0),
    Case("locon", "LoConModule", _IN, multiplier=1.0, own_loader=False),
    Case("loha", "LohaModule"),
    Case("loha", "LohaModule", {"use_tucker": True}),
    Case("loha", "LohaModule", {"use_scalar": True, "rs_lora": True}),
    Case("loha", "LohaModule", _DORA, multiplier=1.0),
    Case("loha", "LohaModule", _IN, multiplier=1.0, own_loader=False),
    Case("lokr", "LokrModule"),
    Case("lokr", "LokrModule", {"factor": 2}, own_loader=False),
    Case("lokr", "LokrModule", {"factor": 2, "decompose_both": True}, dim=1, own_loader=False),
    Case("lokr", "LokrModule", {"factor": 2, "use_tucker": True}, own_loader=False),
    Case("lokr", "LokrModule", {"factor": 2, "unbalanced_factorization": True}, own_loader=False),
    Case("lokr", "LokrModule", {"full_matrix": True, "factor": 4}, own_loader=False),
    Case("lokr", "LokrModule", {"factor": 2, **_DORA}, multiplier=1.0, own_loader=False),
    Case("ia3", "IA3Module", own_loader=False),
    Case("ia3", "IA3Module", {"train_on_input": True}, own_loader=False),
    Case("glora", "GLoRAModule"),
    Case("full", "FullModule"),
    Case("norm", "NormModule", kinds=("layer_norm", "group_norm")),
    Case("diag-oft", "DiagOFTModule", dim=4),
    Case("diag-oft", "DiagOFTModule", {"constraint": 0.01}, dim=4),
    Case("diag-oft", "DiagOFTModule", {"constraint": 0.01, "rescaled": True}, dim=4, multiplier=1.0),
    Case("boft", "ButterflyOFTModule", dim=4),
    Case("boft", "ButterflyOFTModule", {"constraint": 0.01, "rescaled": True}, dim=4, multiplier=1.0),
    Case("tlora", "TLoraModule", kinds=("linear", "conv1x1"), own_loader=False),
)
PAIRS = [pytest.param(case, kind, id=f"{case}-{kind}") for case in CASES for kind in case.kinds]


def model_of(kind: str) -> tuple[Holder, Tensor]:
    make, shape = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Holder(make()).requires_grad_(False).eval(), torch.randn(shape)


def moved(module: nn.Module, size: float = 0.3) -> None:
    """Bring parameters away from where they start."""
    generator = torch.Generator().manual_seed(9)
    for parameter in module.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)


def their_module(case: Case, layer: nn.Module) -> nn.Module:
    options = dict(case.options)
    if case.algo != "norm":
        options |= {"lora_dim": case.dim, "alpha": 3.0}
    with torch.random.fork_rng():
        torch.manual_seed(3)  # where parameters start decides how much the test's random changes change
        return getattr(theirs, case.module)(NAME, layer, multiplier=case.multiplier, **options)


def output_there(module: nn.Module, model: Holder, x: Tensor) -> Tensor:
    module.eval()
    module.apply_to()  # type: ignore[operator]
    with torch.no_grad():
        return model(x)


def assert_same(found: Tensor, expected: Tensor, base: Tensor) -> None:
    assert (expected - base).norm() > 1e-2 * base.norm()
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("case", "kind"), PAIRS)
def test_what_they_write_gives_the_same_here(case: Case, kind: str, tmp_path: Path) -> None:
    model, x = model_of(kind)
    base, copied = model(x), copy.deepcopy(model)
    module = their_module(case, copied.layer)
    moved(module)
    expected = output_there(module, copied, x)
    tensors = {f"{NAME}.{key}": tensor.detach().clone().contiguous() for key, tensor in module.state_dict().items()}
    save_file(tensors, tmp_path / "theirs.safetensors")
    with load_network({"model": model}, tmp_path / "theirs.safetensors", multiplier=case.multiplier):
        assert_same(model(x), expected, base)


@pytest.mark.parametrize(("case", "kind"), PAIRS)
def test_what_we_write_gives_the_same_there(case: Case, kind: str, tmp_path: Path) -> None:
    model, x = model_of(kind)
    base = model(x)
    network = create_network({"model": model}, algo=case.algo, targets=[NAME], dim=case.dim, alpha=3.0, **case.options)
    moved(network)
    network.multiplier = case.multiplier
    network.eval()
    with network, torch.no_grad():
        found = model(x)
    network.save(tmp_path / "ours.safetensors")
    copied = copy.deepcopy(model)
    if case.own_loader:
        wrapper, _ = create_lycoris_from_weights(case.multiplier, str(tmp_path / "ours.safetensors"), copied)
        [module] = wrapper.loras
    else:
        module = their_module(case, copied.layer)
        tensors = {key.partition(".")[2]: tensor for key, tensor in network.file_tensors().items()}
        missing, unexpected = module.load_state_dict(tensors, strict=False)
        assert not unexpected
        assert all("base" in key or "scalar" in key for key in missing)
    assert_same(found, output_there(module, copied, x), base)


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
def test_dylora_files_are_lora_files(kind: str) -> None:
    """Their DyLoRA draws a block even outside training, so that files are compared, not outputs."""
    model, _ = model_of(kind)
    module = theirs.DyLoraModule(NAME, copy.deepcopy(model.layer), lora_dim=4, alpha=3.0, block_size=2)
    moved(module)
    tensors = {f"{NAME}.{key}": tensor.detach() for key, tensor in module.state_dict().items()}
    up, down = (tensors[f"{NAME}.lora_{part}.weight"].flatten(1) for part in ("up", "down"))
    [(_, delta)] = load_network({"model": model}, tensors).deltas()
    torch.testing.assert_close(delta.flatten(1), 3.0 / 4 * up @ down)
