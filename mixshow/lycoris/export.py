"""A network as files of algorithms that other programs know: exactly LoRA where it has a low rank, else its delta."""

from __future__ import annotations

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.lycoris.carrier import own_weight
from mixshow.lycoris.network import Network


def lora_tensors(network: Network) -> dict[str, Tensor]:
    """The tensors of a LoRA file with the same change: LoHa gets rank r * r, T-LoRA 2 r, LoKr and GLoRA theirs.

    Changes that depend on the weight (GLoRA, T-LoRA) become those of this base. The multiplier is left out.

    Raises:
        MixshowError: some changes have no low rank (DoRA, rotations, full matrices); names them.
    """
    found: dict[str, Tensor] = {}
    without: dict[str, str] = {}
    with torch.no_grad():
        for name, adapter in network.adapters.items():
            weight = own_weight(network.targets[name])
            factors = adapter.low_rank(weight)
            if factors is None:
                without[name] = adapter.name
                continue
            up, down = factors
            found[f"{name}.alpha"] = torch.tensor(float(down.shape[0]))
            found[f"{name}.lora_up.weight"] = up.reshape(*up.shape, *[1] * (weight.dim() - 2))
            found[f"{name}.lora_down.weight"] = down.reshape(-1, *weight.shape[1:])
    if without:
        name, kind = next(iter(without.items()))
        raise MixshowError(
            f"network: {len(without)} of {len(network.adapters)} changes have no low rank, such as '{name}' ({kind}); "
            "write their deltas instead"
        )
    return found


def delta_tensors(network: Network) -> dict[str, Tensor]:
    """The tensors of a file of `full` and `norm` changes with the same change, for algorithms that others do not know.

    They are as large as the weights. The multiplier is left out.
    """
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, adapter in network.adapters.items():
            if adapter.name == "norm":
                found |= {f"{name}.{key}": tensor.detach() for key, tensor in adapter.tensors().items()}
                continue
            found[f"{name}.diff"] = adapter.delta(own_weight(network.targets[name])).contiguous()
            bias = adapter.bias_delta()
            if bias is not None:
                found[f"{name}.diff_b"] = bias
    return found
