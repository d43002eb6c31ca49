"""DyLoRA: in training a prefix of its ranks that learns in its last block, otherwise a LoRA; and files cut to ranks."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixshow.core.errors import MixshowError
from mixshow.lycoris import create_network, load_network
from mixshow.lycoris.dylora import DyLoRA, at_rank, every_rank
from mixshow.lycoris.locon import LoCon
from tests.lycoris.conformance import Conformance, Holder


class TestDyLoRA(Conformance):
    """With one block, which training draws every time."""

    algo = "dylora"
    options: ClassVar = {"block_size": 2}


def _trained(rank: int = 6, block_size: int = 2) -> tuple[nn.Module, DyLoRA]:
    torch.manual_seed(0)
    module = nn.Conv2d(12, 16, 3).double().requires_grad_(False)
    dylora = DyLoRA.create(module, dim=rank, alpha=3.0, block_size=block_size).double()
    dylora.up.data.normal_()
    return module, dylora


X = torch.randn(2, 12, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _of_rank(dylora: DyLoRA, module: nn.Module, rank: int) -> Tensor:
    """What a LoRA file cut to these ranks adds."""
    cut = at_rank({f"x.{key}": tensor for key, tensor in dylora.tensors().items()}, rank)
    lora = LoCon.from_tensors({key.removeprefix("x."): tensor for key, tensor in cut.items()}, module).double()
    return lora.forward_change(X, module, 1.0, None)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_training_forward_is_the_lora_cut_after_the_block(block: int) -> None:
    module, dylora = _trained()
    dylora.block = block
    change = dylora.forward_change(X, module, 1.0, None)
    torch.testing.assert_close(change, _of_rank(dylora, module, 2 * block + 2), rtol=1e-6, atol=1e-6)
    change.square().sum().backward()
    learning = [bool(dylora.down.grad[2 * b : 2 * b + 2].any()) for b in range(3)]  # type: ignore[index]
    assert learning == [b == block for b in range(3)]
    assert [bool(dylora.up.grad[:, 2 * b : 2 * b + 2].any()) for b in range(3)] == learning  # type: ignore[index]


def test_every_block_is_drawn() -> None:
    module, dylora = _trained()
    prefixes = [_of_rank(dylora, module, rank) for rank in (2, 4, 6)]
    drawn = []
    for _ in range(60):
        change = dylora.forward_change(X, module, 1.0, None)
        drawn += [b for b, prefix in enumerate(prefixes) if torch.allclose(change, prefix, rtol=1e-5, atol=1e-5)]
    assert len(drawn) == 60
    assert all(drawn.count(block) > 8 for block in range(3))


def test_outside_training_all_ranks_act() -> None:
    module, dylora = _trained()
    dylora.eval()
    whole = _of_rank(dylora, module, 6)
    for _ in range(3):
        torch.testing.assert_close(dylora.forward_change(X, module, 1.0, None), whole, rtol=1e-6, atol=1e-6)


def test_gradient_checkpointing_draws_the_same_block_again() -> None:
    model = Holder(nn.Linear(12, 16)).requires_grad_(False)
    network = create_network({"unet": model}, algo="dylora", dim=8, block_size=1)
    for parameter in network.parameters():
        parameter.data.normal_()
    x = torch.randn(3, 12, requires_grad=True)
    found = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(5)
        network.zero_grad()
        with network:
            run(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in network.parameters()])  # type: ignore[union-attr]
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_lycoris_is_the_same_with_alpha_times_the_block_size() -> None:
    """In training its factor for block b, counted from 0, is alpha / (b + 1)."""
    module, dylora = _trained()
    up, down, alpha = dylora.up.detach(), dylora.down.detach().flatten(1), 3.0 / 2
    for dylora.block in range(3):
        ranks = 2 * dylora.block + 2
        published = alpha / (dylora.block + 1) * (up[:, :ranks] @ down[:ranks]).reshape(16, 12, 3, 3)
        found = dylora.forward_change(X, module, 1.0, None)
        torch.testing.assert_close(found, torch.nn.functional.conv2d(X, published))


@pytest.mark.parametrize("up_shape", [(16, 6), (16, 6, 1, 1)])
def test_files_with_a_flat_up_part_are_read(up_shape: tuple[int, ...]) -> None:
    """LyCORIS writes matrices for convolutions, and cannot read them."""
    module, dylora = _trained()
    tensors = dylora.tensors()
    assert tensors["lora_up.weight"].shape == (16, 6, 1, 1)
    tensors["lora_up.weight"] = tensors["lora_up.weight"].reshape(up_shape)
    again = load_network({"unet": Holder(module)}, {f"lora_unet_layer.{key}": t for key, t in tensors.items()})
    ((_, delta),) = again.deltas()
    torch.testing.assert_close(delta, dylora.delta(torch.zeros(1)).float())
    DyLoRA.from_tensors(tensors, module)


def test_files_are_cut_to_every_rank() -> None:
    _, dylora = _trained()
    tensors = {f"lora_unet_layer.{key}": tensor for key, tensor in dylora.tensors().items()}
    cuts = dict(every_rank(tensors, 2))
    assert list(cuts) == [2, 4]
    for rank, cut in cuts.items():
        assert cut["lora_unet_layer.lora_down.weight"].shape == (rank, 12, 3, 3)
        assert cut["lora_unet_layer.lora_up.weight"].shape == (16, rank, 1, 1)
        assert float(cut["lora_unet_layer.alpha"]) == 3.0


def test_mistakes_are_explained() -> None:
    module = nn.Linear(12, 16)
    with pytest.raises(MixshowError, match="block_size: expected a divisor of the rank 6, found 4"):
        DyLoRA.create(module, dim=6, alpha=1.0)
    tensors = DyLoRA.create(module, dim=4, alpha=1.0).tensors()
    with pytest.raises(MixshowError, match="rank: expected 1 to 4"):
        at_rank(tensors, 5)
    with pytest.raises(MixshowError, match="block_size: expected 1 to 3"):
        list(every_rank(tensors, 4))
    with pytest.raises(MixshowError, match="found none"):
        at_rank({"alpha": torch.tensor(1.0)}, 1)
    with pytest.raises(MixshowError, match=r"weight of shape \[16, 10\]"):
        DyLoRA.from_tensors(tensors, nn.Linear(10, 16))
