"""Networks on a model of several layers: what is selected, what is refused, files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.core.files import write_safetensors
from mixshow.lycoris import create_network, load_network
from mixshow.lycoris.locon import LoCon
from mixshow.lycoris.loha import LoHa
from mixshow.lycoris.registry import ALGORITHMS, algorithm_named
from tests.lycoris.small import TARGETS, Block, X, made

# --- what is selected


def test_without_targets_every_layer_of_any_model_is_changed(block: Block) -> None:
    network = create_network({"model": block}, dim=2)
    assert list(network.adapters) == ["lycoris_conv", "lycoris_mix", "lycoris_linear"]


def test_wide_kernels_have_their_own_rank(block: Block) -> None:
    network = create_network({"unet": block}, dim=3, alpha=2.0, conv_dim=2, conv_alpha=0.5)
    sizes = {name: (adapter.rank, adapter.alpha) for name, adapter in network.adapters.items()}  # type: ignore[attr-defined]
    assert sizes == {"lora_unet_conv": (2, 0.5), "lora_unet_mix": (3, 2.0), "lora_unet_linear": (3, 2.0)}
    assert "lora_unet_conv" not in create_network({"unet": block}, dim=3, conv_dim=0).adapters
    assert create_network({"unet": block}, dim=3).adapters["lora_unet_conv"].alpha == 3  # type: ignore[attr-defined]


def test_a_preset_maps_classes_and_names_to_algorithms(block: Block) -> None:
    preset = {
        "target_module": ["Linear", "Conv2d", "LayerNorm"],
        "module_algo_map": {"Linear": {"algo": "loha", "dim": 1, "alpha": 0.5}},
        "name_algo_map": {"mix": {"use_tucker": "false", "rs_lora": True}},
    }
    network = create_network({"model": block}, preset=preset, dim=2, train_norm=True, dropout=0.1, use_tucker=True)
    kinds = {name.removeprefix("lycoris_"): adapter for name, adapter in network.adapters.items()}
    assert {name: adapter.name for name, adapter in kinds.items()} == {
        "conv": "locon",
        "mix": "locon",
        "norm": "norm",
        "linear": "loha",
    }
    loha, mix, conv = kinds["linear"], kinds["mix"], kinds["conv"]
    assert isinstance(loha, LoHa) and isinstance(mix, LoCon) and isinstance(conv, LoCon)
    assert (loha.rank, loha.alpha) == (1, 0.5)
    assert mix.alpha == pytest.approx(2 * 2**0.5)
    assert conv.mid is not None
    assert all(adapter.dropouts.dropout == 0.1 for adapter in kinds.values())


def test_a_generator_fixes_the_first_values(block: Block) -> None:
    one, other = (create_network({"unet": block}, generator=torch.Generator().manual_seed(3), dim=2) for _ in range(2))
    for a, b in zip(one.parameters(), other.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_is_found_by_its_names(name: str) -> None:
    kind = ALGORITHMS[name]
    assert all(algorithm_named(spelled) is kind for spelled in (name, *kind.aliases, name.upper()))
    assert all(help_line for help_line in kind.options.values())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"algo": "diag-offt"}, "algorithm 'diag-offt': unknown; did you mean 'diag-oft'"),
        ({"use_tuker": True}, "no option 'use_tuker'; did you mean 'use_tucker'"),
        ({"factor": 8}, "algorithm 'locon': no option 'factor'; that is one of lokr, glokr"),
        ({"algo": "lokr", "factor": "many"}, "option 'factor': expected a whole number, found 'many'"),
        ({"algo": "dylora", "block_size": 1.5}, "option 'block_size': expected a whole number"),
        ({"rs_lora": "perhaps"}, "option 'rs_lora': expected true or false"),
        ({"dropout": 1.0}, "dropout: expected a probability"),
        ({"targets": ["lora_unet_lineer"]}, "no such module in these models; did you mean 'lora_unet_linear'"),
        ({"targets": []}, "at least one target"),
        ({"preset": "full"}, "found both"),
        ({"targets": None, "preset": "unet-convblock-onl"}, "unet-convblock-only"),
        ({"targets": None, "preset": "attn-mlp"}, "matches nothing"),
        ({"targets": TARGETS[:1], "conv_dim": 0}, "nothing is left to change"),
        ({"dim": 5}, "'lora_unet_linear': expected a rank of at most 4 for a weight"),
        ({"dim": 0, "conv_dim": 1}, None),
        ({"dim": -1}, "dim: expected at least 1, found -1"),
        ({"targets": ["lora_unet_norm"]}, "'lora_unet_norm': expected a Linear"),
        ({"algo": "norm"}, "'lora_unet_conv': expected a LayerNorm"),
    ],
)
def test_what_cannot_be_made_is_explained(block: Block, keywords: dict[str, Any], message: str | None) -> None:
    before = {name: dict(module.__dict__) for name, module in block.named_modules()}
    settings: dict[str, Any] = {"targets": TARGETS, "dim": 2, "alpha": 3.0}
    if message is None:
        create_network({"unet": block}, **(settings | keywords))
        return
    with pytest.raises(MixshowError, match=message):
        create_network({"unet": block}, **(settings | keywords))
    assert {name: dict(module.__dict__) for name, module in block.named_modules()} == before


def test_options_go_by_the_names_of_other_programs(block: Block) -> None:
    network = create_network({"unet": block}, targets=TARGETS[2:], dim=2, dora_wd="True", wd_on_output="false")
    [adapter] = network.adapters.values()
    assert isinstance(adapter, LoCon) and adapter.magnitude is not None
    assert not adapter.magnitude.on_output


# --- files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_unet_gone.lora_up.weight": torch.zeros(1, 1)}, "'lora_unet_gone' names no module of this base"),
        ({"lora_unet_linear.lora_down.weight": torch.zeros(2, 9)}, "expected factors.*other widths"),
        ({"lora_unet_linear.mystery": torch.zeros(1)}, "mystery are none of algorithm 'locon'"),
        ({"lora_unet_norm.mystery": torch.zeros(1)}, "'lora_unet_norm': tensors mystery belong to no known algorithm"),
        ({"lora_unet_linear.hada_w1_a": torch.zeros(1)}, "tensors of locon and loha mixed"),
        ({"lora_unet_linear.lora_up.weight": None}, "expected a tensor 'lora_up.weight' of algorithm 'locon'"),
        ({"lora_unet_linear.alpha": torch.tensor(torch.inf)}, "'lora_unet_linear.alpha' is inf"),
        ({"lora_unet_linear.lora_up.weight": torch.full((4, 2), torch.nan)}, "no numbers"),
        ({"lora_unet_linear.dora_scale": torch.ones(3, 1)}, "dora_scale: expected a tensor"),
    ],
)
def test_files_that_do_not_fit_are_explained(block: Block, changes: dict[str, Any], message: str) -> None:
    tensors = {**made(block).file_tensors(), **changes}
    before = block(X)
    with pytest.raises(MixshowError, match=message):
        load_network({"unet": block}, {key: tensor for key, tensor in tensors.items() if tensor is not None})
    assert torch.equal(block(X), before)


def test_embeddings_beside_a_network_are_not_passed_over_in_silence(
    block: Block, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, tensors = tmp_path / "bundle.safetensors", made(block).file_tensors()
    write_safetensors(path, {**tensors, "bundle_emb.<s1>.emb_params": torch.zeros(1, 4)})
    with caplog.at_level(logging.INFO, logger="mixshow"):
        logging.getLogger("mixshow").propagate = True
        load_network({"unet": block}, tensors)
        assert not caplog.text
        load_network({"unet": block}, path)
    assert "its embeddings are not: bundle_emb.<s1>.emb_params" in caplog.text


def test_all_modules_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model, wider = (nn.ModuleDict({f"layer{i}": nn.Linear(width, 3) for i in range(13)}) for width in (4, 5))
    path = tmp_path / "wider.safetensors"
    create_network({"unet": wider}, dim=2).save(path)
    with pytest.raises(MixshowError) as caught:
        load_network({"unet": model}, path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 11 and all(line.startswith(f"{path}: ") for line in lines)
    assert all("expected factors for a weight of shape [3, 4], found up [3, 2]" in line for line in lines[:10])
    assert len({line.split("'")[1] for line in lines[:10]}) == 10
    assert lines[10].endswith("3 more modules do not fit either")


def test_a_file_without_alpha_is_read_only_when_told_how(block: Block) -> None:
    tensors = {key: tensor for key, tensor in made(block, alpha=2.0).file_tensors().items() if "alpha" not in key}
    before = block(X)
    with pytest.raises(MixshowError, match="'lora_unet_conv', 'lora_unet_mix', 'lora_unet_linear' have no tensor"):
        load_network({"unet": block}, tensors)
    assert torch.equal(block(X), before)
    found = dict(load_network({"unet": block}, tensors, missing_alpha="rank").deltas())
    for name, delta in made(block, alpha=2.0).deltas():
        torch.testing.assert_close(found[name], delta.float())


def test_a_file_without_a_network_is_refused(block: Block, tmp_path: Path) -> None:
    """Tensors may be none: a concept can do without a network."""
    write_safetensors(tmp_path / "empty.safetensors", {"bundle_emb.x.emb_params": torch.zeros(1, 4)})
    with pytest.raises(MixshowError, match=r"empty.safetensors: expected tensors .* found none"):
        load_network({"unet": block}, tmp_path / "empty.safetensors")
    assert load_network({"unet": block}, {}).adapters == {}


def test_alpha_may_be_an_integer_of_any_shape(block: Block) -> None:
    tensors = made(block).file_tensors()
    for shape in ((), (1,)):
        whole = {key: torch.full(shape, 3) if key.endswith("alpha") else t for key, t in tensors.items()}
        for (_, delta), (_, other) in zip(made(block).deltas(), load_network({"unet": block}, whole).deltas()):
            torch.testing.assert_close(other, delta.float())
