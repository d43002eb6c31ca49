"""Every algorithm trains from an options file and comes back from the concept file."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from mixshow.cli.main import main
from mixshow.config.train import Algorithm
from mixshow.edlora.concept import attach_concepts
from mixshow.formats import read_concept
from mixshow.lycoris.registry import ALGORITHMS
from mixshow.lycoris.tlora import TLoRA
from mixshow.models import encode_prompts
from tests.edlora.test_train_command import options_file  # noqa: F401

OWN = {"lokr": ["network.options.factor=4"], "boft": ["network.rank=8"], "dylora": ["network.options.block_size=2"]}


def test_options_know_every_algorithm_that_placements_can_take():
    assert set(get_args(Algorithm)) == set(ALGORITHMS) - {"norm"} | {"lora"}


@pytest.mark.parametrize("algo", sorted(set(ALGORITHMS) - {"norm"}))
def test_trains_from_an_options_file(algo, options_file, tmp_path, tiny):  # noqa: F811
    overrides = [f"network.algo={algo}", "network.alpha=2", "sample.prompts=[]", *OWN.get(algo, [])]
    assert main(["train", str(options_file), *overrides]) == 0
    concept = read_concept(tmp_path / "out" / "concept.safetensors")
    with torch.no_grad():
        states = []
        for strength in (0.0, 1.0):
            base, attachment = attach_concepts(tiny, [concept], strengths=[strength])
            with attachment:
                states.append(encode_prompts(base, [f"a photo of {concept.text}"]))
    assert torch.isfinite(states[1]).all() and not torch.equal(*states)


def test_an_option_of_another_algorithm_is_named(options_file, tmp_path, capsys):  # noqa: F811
    assert main(["train", str(options_file), "network.algo=loha", "network.options.factor=4"]) == 2
    assert "factor" in capsys.readouterr().err and not (tmp_path / "out" / "concept.safetensors").exists()


def test_training_tells_the_unets_tlora_each_pictures_time(options_file, tmp_path, tiny, monkeypatch):  # noqa: F811
    told, own = [], TLoRA.set_timestep

    def told_and_set(self, timestep, steps=None):
        if timestep is not None:
            told.append((len(timestep), steps))
        own(self, timestep, steps)

    monkeypatch.setattr(TLoRA, "set_timestep", told_and_set)
    options = ["network.algo=tlora", "network.rank=4", "network.options.min_rank=2", "sample.prompts=[]"]
    assert main(["train", str(options_file), *options]) == 0
    concept = read_concept(tmp_path / "out" / "concept.safetensors")
    on_unet = {key.partition(".")[0] for key in concept.network if key.startswith("lora_unet")}
    assert len(told) == 2 * len(on_unet)  # steps, and nothing on the text encoder
    assert set(told) == {(2, tiny.scheduler_config["num_train_timesteps"])}
    assert concept.metadata["network_options"] == {"min_rank": 2, "rank_power": 1.0}
