"""Networks on a model of several layers: what is selected, what is refused, merging, and company."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mixshow.core.errors import MixshowError
from mixshow.core.files import write_safetensors
from mixshow.lycoris import Network, create_network, load_network
from mixshow.lycoris.locon import LoCon
from mixshow.lycoris.loha import LoHa
from mixshow.lycoris.registry import ALGORITHMS, algorithm_named


class Block(nn.Module):
    """A strided 3x3 and a 1x1 convolution, a norm and a linear layer in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(6, 8, 1)
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.mix(self.conv(x)).movedim(1, -1)))


TARGETS = ["lora_unet_conv", "lora_unet_mix", "lora_unet_linear"]
X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().double().requires_grad_(False)


def made(block: nn.Module, **keywords: Any) -> Network:
    """A LoCon network away from its start."""
    settings: dict[str, Any] = {"targets": TARGETS, "dim": 2, "alpha": 3.0}
    network = create_network({"unet": block}, **(settings | keywords)).double()
    generator = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return network


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


# --- merging


def test_a_merged_network_that_is_attached_counts_once(block: Block) -> None:
    network = made(block)
    network.multiplier = 0.7
    with network:
        expected = block(X)
        network.merge()
        torch.testing.assert_close(block(X), expected, rtol=1e-12, atol=1e-12)
        network.unmerge()
        torch.testing.assert_close(block(X), expected, rtol=0, atol=0)


def test_the_multiplier_of_a_merged_network_stays(block: Block) -> None:
    network = made(block).merge()
    with pytest.raises(MixshowError, match="unmerge"):
        network.multiplier = 0.5
    network.multiplier = 1.0
    network.unmerge()
    network.multiplier = 0.5


def test_merging_twice_changes_nothing_more(block: Block) -> None:
    network, before = made(block), copy.deepcopy(block.state_dict())
    once = copy.deepcopy(network.merge() and block.state_dict())
    network.merge()
    assert all(torch.equal(tensor, once[name]) for name, tensor in block.state_dict().items())
    network.unmerge()
    network.unmerge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


def test_a_failed_merge_leaves_the_weights(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    network, before = made(block), copy.deepcopy(block.state_dict())
    monkeypatch.setattr(network.adapters[TARGETS[-1]], "change_at", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        network.merge()
    assert not network.merged
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    assert all("_mixshow_networks" not in module.__dict__ for module in block.modules())


# Algorithms whose change depends on the weight, and one that does not.
DEPENDENT = [
    {"algo": "locon", "weight_decompose": True},
    {"algo": "lokr", "weight_decompose": True, "wd_on_out": False, "factor": 4},
    {"algo": "glora"},
    {"algo": "glokr", "factor": 4},
    {"algo": "ia3"},
    {"algo": "diag-oft", "rescaled": True},
    {"algo": "boft", "dim": 4},
    {"algo": "tlora"},
    {"algo": "full"},
]


@pytest.fixture
def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 8)).double().requires_grad_(False)


ROWS = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("keywords", DEPENDENT, ids=lambda keywords: keywords["algo"])
def test_networks_read_the_base_whatever_is_merged_into_it(stack: nn.Sequential, keywords: dict[str, Any]) -> None:
    plain = stack(ROWS)
    one, other = made(stack, targets=None, algo="loha"), made(stack, targets=None, **keywords)
    one.multiplier, other.multiplier = 0.8, 0.6
    with one, other:
        expected = stack(ROWS)
    assert not torch.allclose(expected, plain)
    one.merge()
    with other:
        torch.testing.assert_close(stack(ROWS), expected, rtol=1e-10, atol=1e-10)
    other.merge()
    torch.testing.assert_close(stack(ROWS), expected, rtol=1e-10, atol=1e-10)
    one.unmerge()
    with one:
        torch.testing.assert_close(stack(ROWS), expected, rtol=1e-10, atol=1e-10)
    other.unmerge()
    assert torch.equal(stack(ROWS), plain)


@pytest.mark.parametrize("keywords", DEPENDENT, ids=lambda keywords: keywords["algo"])
@pytest.mark.parametrize("first_out", [0, 1])
def test_merged_networks_come_out_in_any_order(stack: nn.Sequential, keywords: dict[str, Any], first_out: int) -> None:
    before = copy.deepcopy(stack.state_dict())
    networks = made(stack, targets=None, algo="glora"), made(stack, targets=None, **keywords)
    staying, leaving = networks[1 - first_out], networks[first_out]
    alone = copy.deepcopy(staying.merge() and stack.state_dict())
    staying.unmerge()
    for network in networks:
        network.merge()
    leaving.unmerge()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in stack.state_dict().items())
    staying.unmerge()
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.state_dict().items())
    assert all(not name.startswith("_mixshow") for module in stack.modules() for name in module.__dict__)


@pytest.mark.parametrize("keywords", DEPENDENT, ids=lambda keywords: keywords["algo"])
def test_what_is_made_or_loaded_beside_a_merged_network(stack: nn.Sequential, keywords: dict[str, Any]) -> None:
    def fresh() -> Network:
        settings: dict[str, Any] = {"dim": 2, **keywords}
        return create_network({"unet": stack}, generator=torch.Generator().manual_seed(1), **settings)

    tensors = made(stack, targets=None, **keywords).file_tensors()
    expected, deltas = fresh().file_tensors(), dict(load_network({"unet": stack}, tensors).deltas())
    with_one = made(stack, targets=None, algo="loha").merge()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in fresh().file_tensors().items())
    assert all(torch.equal(delta, deltas[key]) for key, delta in load_network({"unet": stack}, tensors).deltas())
    with_one.unmerge()


def test_a_compiled_model_notices_what_is_merged(stack: nn.Sequential) -> None:
    torch.compiler.reset()
    compiled, plain = torch.compile(stack, backend="eager"), stack(ROWS)
    one = made(stack, targets=None, algo="loha")
    other = made(stack, targets=None, weight_decompose=True, wd_on_out=False)
    with other:
        for change in (lambda: None, one.merge, one.unmerge):
            change()
            torch.testing.assert_close(compiled(ROWS), stack(ROWS), rtol=1e-9, atol=1e-9)
    assert torch.equal(compiled(ROWS), plain)


def test_a_model_converted_while_merged_gets_its_weights_back_converted(stack: nn.Sequential) -> None:
    expected = {name: tensor.bfloat16() for name, tensor in stack.state_dict().items()}
    network = made(stack, targets=None).merge()
    stack.bfloat16()
    network.unmerge()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stack.state_dict().items())


def test_merging_into_16_bits_says_that_it_rounds(block: Block, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mixshow"):
        logging.getLogger("mixshow").propagate = True
        made(block).merge().unmerge()
        assert "rounded" not in caplog.text
        made(block.bfloat16()).merge().unmerge()
    assert "bfloat16 weights: the sum is rounded" in caplog.text


# --- company


def test_a_forward_of_the_instance_is_called_and_comes_back(block: Block) -> None:
    plain = block.linear.forward
    block.linear.forward = lambda x: plain(x) + 1.0  # type: ignore[method-assign]
    own, network = block.linear.forward, made(block)
    for adapter in network.adapters.values():
        adapter.prefers_weight = lambda *_: True  # type: ignore[method-assign]
    before = block(X)
    with network:
        changed = block(X)
    assert block.linear.forward is own
    network.merge()
    torch.testing.assert_close(changed, block(X), rtol=1e-12, atol=1e-12)
    network.unmerge()
    assert torch.equal(block(X), before)


def test_hooks_see_the_changed_output(block: Block) -> None:
    network, seen = made(block), []
    with block.linear.register_forward_hook(lambda _, __, output: seen.append(output)), network:
        output = block(X)
    assert torch.equal(seen[0], output)


def test_networks_come_off_in_any_order(block: Block) -> None:
    one, other, base = made(block), made(block, algo="loha"), block(X)
    one.attach()
    with other:
        both = block(X)
        one.detach()
        alone = block(X)
    with one:
        torch.testing.assert_close(both.shape, block(X).shape)
    assert not torch.equal(both, alone)
    assert torch.equal(block(X), base)
    assert all("forward" not in module.__dict__ for module in block.modules())


def test_a_copied_model_keeps_its_networks(block: Block) -> None:
    with made(block) as network:
        copied = copy.deepcopy(block)
        expected = block(X)
    torch.testing.assert_close(copied(X), expected, rtol=0, atol=0)
    copied.linear.weight.data += 1.0  # its own weights, not the original's
    assert not torch.equal(copied(X), expected)
    assert not network.attached


def test_gradients_are_shared_between_processes(block: Block, tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.network = block, made(block)

        def forward(self, x: Tensor) -> Tensor:
            with self.network:
                return self.block(x)

    plain = Both()
    plain(X).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in plain.network.parameters() if parameter.grad is not None]
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        plain.zero_grad()
        DistributedDataParallel(plain)(X).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for parameter, gradient in zip(plain.network.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient)


def test_max_norm_bounds_every_delta(block: Block) -> None:
    network = made(block)
    norms = {name: float(delta.detach().norm()) for name, delta in network.deltas()}
    limit = sorted(norms.values())[1]
    shrunk, mean, largest = network.scale_norms(limit)
    assert shrunk >= 1
    assert largest == pytest.approx(limit)
    after = [float(delta.detach().norm()) for _, delta in network.deltas()]
    assert mean == pytest.approx(sum(after) / len(after))
    assert max(after) <= limit * (1 + 1e-6)


def test_parameters_by_model(block: Block) -> None:
    network = made(block)
    assert len(network.parameters_of("lora_unet")) == len(list(network.parameters()))
    assert network.parameters_of("lora_te") == []
