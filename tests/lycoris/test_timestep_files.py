"""Files of networks that depend on the diffusion time: what they tell, and that they act as the network did."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from mixshow.config.scene import NetworkOptions
from mixshow.core.errors import MixshowError
from mixshow.core.files import read_safetensors, write_safetensors
from mixshow.edlora.concept import NETWORK_OPTIONS, Concept, attach_concepts, load_concept, save_concept
from mixshow.lycoris import load_network
from mixshow.lycoris.tlora import TLoRA
from mixshow.models import Base
from mixshow.recipes.networks import put_networks_on
from tests.lycoris.timed import STEPS, by_hand, forward, hooks, sampled, trained, with_short_schedule
from tests.tiny import tiny_concept


@pytest.fixture
def base(tiny: Base) -> Base:
    return with_short_schedule(tiny)


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


def test_what_other_programs_read_stays_text(base: Base, tmp_path: Path) -> None:
    trained({"unet": base.unet}).save(tmp_path / "n.safetensors")
    _, metadata = read_safetensors(tmp_path / "n.safetensors")
    assert metadata["ss_network_args"] == '{"algo": "tlora", "min_rank": "1", "rank_power": "1.0"}'
    assert TLoRA.file_options == ("min_rank", "rank_power")
