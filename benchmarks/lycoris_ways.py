"""The ways to train a UNet's layers that `lycoris_unet.py` compares: ours, lycoris-lora's and PEFT's."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import lycoris.modules as peer
import peft
import torch
from lycoris_step import CASES, NO_BYPASS
from torch import Tensor, nn

from mixshow.lycoris import create_network
from mixshow.lycoris.presets import Target

IN_PEFT: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "LoCon r16": ("LoraConfig", {"r": 16, "lora_alpha": 1}),
    "DoRA r16": ("LoraConfig", {"r": 16, "lora_alpha": 1, "use_dora": True}),
    "LoHa r4": ("LoHaConfig", {"r": 4, "alpha": 1}),
    "LoHa r16": ("LoHaConfig", {"r": 16, "alpha": 1}),
    "LoKr r4": ("LoKrConfig", {"r": 4, "alpha": 1}),
    "LoKr factor 8, whole": ("LoKrConfig", {"r": 10000, "alpha": 1, "decompose_factor": 8}),
    "LoKr factor 8, r16": ("LoKrConfig", {"r": 16, "alpha": 1, "decompose_factor": 8}),
    "(IA)^3": ("IA3Config", {"feedforward_modules": []}),
}


@dataclasses.dataclass(frozen=True)
class Way:
    """A network of some program: how it goes on and off, and what it trains."""

    attach: Callable[[], object]
    detach: Callable[[], object]
    parameters: list[nn.Parameter]


def ways_of(name: str, unet: nn.Module, targets: Sequence[Target]) -> dict[str, Way]:
    """The ways that a case has, none of them attached."""
    algo, module, _, options = CASES[name]
    found = {"frozen": Way(lambda: None, lambda: None, []), "ours": ours(name, unet, targets)}
    if module is not None:
        found["default"] = theirs(name, targets, bypass=False)
        # Their bypass silently leaves out the decomposition, so that it is another computation.
        if algo not in NO_BYPASS and "weight_decompose" not in options:
            found["bypass"] = theirs(name, targets, bypass=True)
    if name in IN_PEFT:
        found["PEFT"] = in_peft(name, unet, targets)
    return found


def ours(name: str, unet: nn.Module, targets: Sequence[Target]) -> Way:
    algo, _, dim, options = CASES[name]
    network = create_network({"model": unet}, algo=algo, targets=targets, dim=dim, alpha=1.0, **options)
    return Way(network.attach, network.detach, list(network.parameters()))


def theirs(name: str, targets: Sequence[Target], *, bypass: bool) -> Way:
    """A module on each layer that ours has one on."""
    _, module, dim, options = CASES[name]
    kind = getattr(peer, str(module))
    modules = [
        kind(t.file_name, t.module, 1.0, lora_dim=dim, alpha=1.0, bypass_mode=bypass, **options) for t in targets
    ]
    own = [(target.module, target.module.weight, target.module.bias) for target in targets]

    def detach() -> None:
        for changed in modules:
            changed.restore()
        for layer, weight, bias in own:  # full takes them away
            layer.weight, layer.bias = weight, bias

    return Way(
        lambda: [changed.apply_to() for changed in modules],
        detach,
        [parameter for changed in modules for parameter in changed.parameters()],
    )


def in_peft(name: str, unet: nn.Module, targets: Sequence[Target]) -> Way:
    """PEFT's layers, put into the place of the model's and taken out again."""
    kind, settings = IN_PEFT[name]
    chosen = {id(target.module) for target in targets}
    layers = {path: module for path, module in unet.named_modules() if id(module) in chosen}
    pattern = "|".join(map(re.escape, layers))
    peft.inject_adapter_in_model(getattr(peft, kind)(target_modules=pattern, **settings), unet)
    changed = {path: unet.get_submodule(path) for path in layers}
    del unet.peft_config

    def put(modules: Mapping[str, nn.Module]) -> None:
        for path, module in modules.items():
            parent, _, child = path.rpartition(".")
            setattr(unet.get_submodule(parent), child, module)

    put(layers)
    trained = [p for module in changed.values() for p in module.parameters() if p.requires_grad]
    return Way(lambda: put(changed), lambda: put(layers), trained)


@contextlib.contextmanager
def quick_decompositions() -> Iterator[None]:
    """Anything of the right shapes for the singular vectors that T-LoRA starts from; they take minutes."""

    def shapes(matrix: Tensor, **_: object) -> tuple[Tensor, Tensor, Tensor]:
        most = min(matrix.shape)
        return matrix[:, :most], torch.ones(most), matrix[:most]

    with mock.patch("torch.linalg.svd", shapes):
        yield
