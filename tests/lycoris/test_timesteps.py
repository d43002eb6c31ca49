"""Networks that depend on the diffusion time follow the model they are on: in training, sampling and from files."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixshow.config.scene import NetworkOptions
from mixshow.core.errors import MixshowError
from mixshow.core.files import read_safetensors, write_safetensors
from mixshow.core.progress import log
from mixshow.edlora.concept import NETWORK_OPTIONS, Concept, attach_concepts, load_concept, save_concept
from mixshow.lycoris import Network, create_network, load_network
from mixshow.lycoris.tlora import TLoRA
from mixshow.models import Base, make_scheduler, prompt_states
from mixshow.recipes.networks import put_networks_on
from mixshow.sampling.denoise import denoise
from tests.tiny import tiny_concept

STEPS = 500  # another length than every default


@pytest.fixture
def base(tiny: Base) -> Base:
    """A copy of the tiny base with a shorter noise schedule and a UNet in float64."""
    schedule = {**tiny.scheduler_config, "num_train_timesteps": STEPS}
    return dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet).double(), scheduler_config=schedule)


def trained(models: dict[str, nn.Module], *, seed: int = 0, **options: Any) -> Network:
    """A T-LoRA away from its start, on the attention of all models."""
    network = create_network(models, algo="tlora", preset="attn-only", dim=5, alpha=4.0, **options).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def by_hand(unet: nn.Module, *changes: tuple[Network, int | None, float]) -> Iterator[None]:
    """Before each forward the formula of networks with this min_rank and power is put into the UNet's weights."""
    kept = {name: weight.clone() for name, weight in unet.state_dict().items()}

    def change(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        unet.load_state_dict(kept)
        for network, min_rank, power in changes:
            for name, adapter in network.adapters.items():
                if name.startswith("lora_unet"):
                    share = (STEPS - float(arguments[1])) / STEPS
                    used = 5 if min_rank is None else int(share**power * (5 - min_rank)) + min_rank
                    network.targets[name].weight += formula(adapter, used)

    hook = unet.register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        unet.load_state_dict(kept)


def formula(adapter: Any, used: int) -> Tensor:
    now = adapter.left[:, :used] * adapter.values[:used] @ adapter.right[:used]
    start = adapter.start
    before = start.left[:, :used] * start.values[:used] @ start.right[:used]
    return (adapter.alpha / adapter.rank * (now - before)).reshape(adapter.shape)


@torch.no_grad()
def forward(base: Base, timestep: int | Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    states = torch.randn(2, 24, 16, generator=generator, dtype=torch.float64)
    time = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep)
    return base.unet(latents, time, encoder_hidden_states=states).sample


def sampled(base: Base, prompt: str = "a boy") -> Tensor:
    scheduler = make_scheduler(base)
    scheduler.set_timesteps(3)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    states = prompt_states(base, [prompt])
    return denoise(base, scheduler, latents, states, prompt_states(base, [""]), guidance=3.0)


def hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_pre_hooks) + len(module._forward_pre_hooks_with_kwargs) for module in model.modules()
    )


@pytest.mark.parametrize(("min_rank", "power"), [(1, 1.0), (2, 2.0)])
def test_every_forward_has_the_ranks_of_its_time(base: Base, min_rank: int, power: float) -> None:
    network = trained({"unet": base.unet}, min_rank=min_rank, rank_power=power)
    network.num_train_timesteps = STEPS
    for timestep in (0, 180, 400, 499):
        with by_hand(base.unet, (network, min_rank, power)):
            expected = forward(base, timestep)
        with by_hand(base.unet, (network, None, power)):
            whole = forward(base, timestep)
        with network:
            torch.testing.assert_close(forward(base, timestep), expected)
        assert timestep == 0 or (whole - expected).norm() > 1e-3 * whole.norm()


def test_each_picture_of_a_batch_has_its_own_time(base: Base) -> None:
    network = trained({"unet": base.unet})
    network.num_train_timesteps = STEPS
    with network:
        together = forward(base, torch.tensor([100, 450]))
        for picture, timestep in enumerate((100, 450)):
            torch.testing.assert_close(together[picture], forward(base, timestep)[picture])


def test_several_networks_each_follow_with_their_own_ranks(base: Base) -> None:
    first, second = (trained({"unet": base.unet}, seed=n, min_rank=1 + 2 * n, rank_power=1.0 + n) for n in (0, 1))
    first.num_train_timesteps = second.num_train_timesteps = STEPS
    with by_hand(base.unet, (first, 1, 1.0), (second, 3, 2.0)):
        expected = forward(base, 333)
    with first, second:
        torch.testing.assert_close(forward(base, 333), expected)


@pytest.mark.parametrize("kind", ["concept", "network"])
def test_sampling_with_a_file_is_as_by_hand(base: Base, tmp_path: Path, kind: str) -> None:
    network = trained({"unet": base.unet}, min_rank=2)
    plain = tiny_concept(base, "pip")
    concept = Concept(plain.embeddings, network.file_tensors(), {NETWORK_OPTIONS: network.file_options()})
    path, prompt = tmp_path / "file.safetensors", "a <pip1> boy"
    if kind == "concept":
        save_concept(concept, path)
        known, attachment = attach_concepts(base, [load_concept(path)])
    else:
        network.save(path)
        attachment = put_networks_on(base, [NetworkOptions(path)], "test", merge=False)
        known, prompt = base, "a boy"
    with attachment:
        followed = sampled(known, prompt)
    without = dataclasses.replace(concept, metadata={}, network={})
    known, attachment = attach_concepts(base, [without])
    loaded = load_network({"unet": base.unet}, network.file_tensors())
    with attachment, by_hand(base.unet, (loaded, 2, 1.0)):
        expected = sampled(known, prompt)
    known, attachment = attach_concepts(base, [dataclasses.replace(concept, metadata={})])
    with attachment:
        all_ranks = sampled(known, prompt)
    difference = (all_ranks - expected).norm()
    assert difference > 1e-2 * expected.norm()
    assert (followed - expected).norm() < 1e-3 * difference  # networks from files compute in float32
    assert hooks(base.unet) == 0


def test_files_tell_which_ranks_act(base: Base, tmp_path: Path) -> None:
    network = trained(base.models, min_rank=3, rank_power=0.5)
    network.save(tmp_path / "network.safetensors")
    concept = Concept({}, network.file_tensors(), {NETWORK_OPTIONS: network.file_options()})
    save_concept(concept, tmp_path / "concept.safetensors")
    for name in ("network", "concept"):
        again = load_network(base.models, tmp_path / f"{name}.safetensors")
        assert {(a.min_rank, a.rank_power, a.timed) for a in again.adapters.values()} == {(3, 0.5, True)}
        assert again.file_options() == network.file_options() == {"min_rank": 3, "rank_power": 0.5}


def test_a_file_that_tells_nothing_has_all_ranks(base: Base, tmp_path: Path) -> None:
    network = trained({"unet": base.unet})
    write_safetensors(tmp_path / "n.safetensors", network.file_tensors(), {"ss_network_args": "no JSON"})
    again = load_network({"unet": base.unet}, tmp_path / "n.safetensors").double()
    again.num_train_timesteps = STEPS
    assert again.file_options() == {}
    with by_hand(base.unet, (again, None, 1.0)):
        expected = forward(base, 400)
    with again:
        assert hooks(base.unet) == 0
        torch.testing.assert_close(forward(base, 400), expected)


def test_modules_may_differ(base: Base, tmp_path: Path) -> None:
    network = trained({"unet": base.unet}, min_rank=2)
    first, second, *_ = network.adapters
    network.adapters[first].min_rank, network.adapters[second].min_rank = 4, None
    network.save(tmp_path / "n.safetensors")
    again = load_network({"unet": base.unet}, tmp_path / "n.safetensors")
    for name, adapter in network.adapters.items():
        assert again.adapters[name].min_rank == adapter.min_rank


def test_options_that_no_tensor_goes_with_are_named(base: Base, tmp_path: Path) -> None:
    network = trained({"unet": base.unet})
    with pytest.raises(MixshowError, match=r"option 'min_rnk' .*did you mean 'min_rank'"):
        load_network({"unet": base.unet}, network.file_tensors(), options={"min_rnk": 1})
    with pytest.raises(MixshowError, match="min_rank of 1 to 5"):
        load_network({"unet": base.unet}, network.file_tensors(), options={"min_rank": 6})
    network.save(tmp_path / "n.safetensors", {"ss_network_args": '{"min_rank": "few"}'})
    with pytest.raises(MixshowError, match="option 'min_rank': expected a whole number, found 'few'"):
        load_network({"unet": base.unet}, tmp_path / "n.safetensors")


def test_nothing_stays_on_the_model(base: Base) -> None:
    network = trained(base.models)
    network.num_train_timesteps = STEPS
    before, expected = sampled(base), forward(base, 400)
    with pytest.raises(MixshowError, match="stop"), network:
        assert hooks(base.unet) > 0
        forward(base, 400)
        raise MixshowError("stop")
    assert hooks(base.unet) == 0
    assert all(adapter._mask is None for adapter in network.adapters.values())
    assert torch.equal(forward(base, 400), expected) and torch.equal(sampled(base), before)


def test_text_encoders_and_unknown_schedules_have_all_ranks(base: Base) -> None:
    network = trained(base.models)
    with network:
        forward(base, 400)
        assert all(adapter._mask is None for adapter in network.adapters.values())
        network.num_train_timesteps = STEPS
        forward(base, 400)
        told = {name for name, adapter in network.adapters.items() if adapter._mask is not None}
    assert told == {name for name in network.adapters if name.startswith("lora_unet")}


def test_merged_it_has_all_ranks_and_says_so(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "info", lambda text, *_: said.append(text))
    network = trained({"unet": base.unet})
    network.num_train_timesteps = STEPS
    with by_hand(base.unet, (network, None, 1.0)):
        expected = forward(base, 400)
    with network:
        network.merge()
        try:
            torch.testing.assert_close(forward(base, 400), expected)
        finally:
            network.unmerge()
    assert [text for text in said if "merged with all ranks" in text]


def test_checkpointing_runs_with_the_same_ranks_again(base: Base) -> None:
    network = trained({"unet": base.unet}).requires_grad_(True)
    network.num_train_timesteps = STEPS
    latents, states = (torch.randn(2, *shape, dtype=torch.float64) for shape in ((4, 8, 8), (24, 16)))
    found = []
    base.unet.train()
    for checkpointed in (False, True):
        (base.unet.enable_gradient_checkpointing if checkpointed else base.unet.disable_gradient_checkpointing)()
        with network:
            base.unet(latents, torch.tensor([30, 420]), encoder_hidden_states=states).sample.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in network.parameters()])
        network.zero_grad()
    for gradient, again in zip(*found):
        torch.testing.assert_close(again, gradient)


class Timed(nn.Module):
    """A model of one layer whose forward takes a timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.layer(x) + timestep


def test_the_compiler_follows() -> None:
    model, x = Timed().requires_grad_(False), torch.randn(2, 6)
    network = create_network({"model": model}, algo="tlora", dim=5)
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter)
    network.num_train_timesteps = STEPS
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with network, torch.no_grad():
        for time in (torch.tensor(0), torch.tensor(450), torch.tensor(250)):
            torch.testing.assert_close(compiled(x, time), model(x, timestep=time))


def test_a_copied_model_tells_the_same_adapters() -> None:
    model, x, time = Timed().requires_grad_(False), torch.randn(2, 6), torch.tensor(450)
    network = create_network({"model": model}, algo="tlora", dim=5)
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter)
    network.num_train_timesteps = STEPS
    with network, torch.no_grad():
        copied = copy.deepcopy(model)
        assert torch.equal(copied(x, time), model(x, time))
        network.set_timestep(None)
        assert torch.equal(copied(x, time), model(x, time))


def test_what_other_programs_read_stays_text(base: Base, tmp_path: Path) -> None:
    trained({"unet": base.unet}).save(tmp_path / "n.safetensors")
    _, metadata = read_safetensors(tmp_path / "n.safetensors")
    assert metadata["ss_network_args"] == '{"algo": "tlora", "min_rank": "1", "rank_power": "1.0"}'
    assert TLoRA.file_options == ("min_rank", "rank_power")
