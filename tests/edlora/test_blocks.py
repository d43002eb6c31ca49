"""Rank, alpha and learning rate by block of the UNet in training."""

from __future__ import annotations

import pytest

from mixshow.cli.main import main
from mixshow.config.load import load
from mixshow.config.train import NetworkOptions
from mixshow.formats import read_concept
from mixshow.lycoris.blocks import BlockLayout
from mixshow.recipes.train import make_network
from tests.edlora.test_train_command import options_file  # noqa: F401

RANKS = [2] * 12 + [3] + [1] * 11 + [0]
RATES = [0.5] * 13 + [2.0] * 10 + [0.0, 1.0]


def test_training_leaves_blocks_of_zero_out(options_file, tmp_path, tiny):  # noqa: F811
    blocks = [f"network.blocks.ranks={RANKS}", f"network.blocks.rates={RATES}", "sample.prompts=[]"]
    assert main(["train", str(options_file), *blocks, "train.schedule=constant"]) == 0
    concept, layout = read_concept(tmp_path / "out" / "concept.safetensors"), BlockLayout.of(tiny.models)
    found: dict[int, set[tuple[int, float]]] = {}
    for key, tensor in concept.network.items():
        name, _, part = key.partition(".")
        if part == "lora_down.weight" and (block := layout.block_of(name)) is not None:
            found.setdefault(block, set()).add((len(tensor), float(concept.network[f"{name}.alpha"])))
    assert 24 not in found and 23 not in found  # rank 0, rate 0
    assert all(sizes == {(RANKS[block], float(RANKS[block]))} for block, sizes in found.items())
    assert {found[block].copy().pop()[0] for block in (1, 12, 22)} == {1, 2, 3}
    assert any(key.startswith("lora_te_") for key in concept.network)


def test_blocks_learn_at_their_own_rate(make_trainer, tiny):
    """Adam's first step moves an element by the learning rate, unless its gradient is next to nothing."""
    rates = RATES[:23] + [1.0, 1.0]
    trainer = make_trainer(block_rates=rates, steps=1, weight_decay=0.0, schedule="constant")
    layout = BlockLayout.of(tiny.models)
    before = {name: adapter.up.detach().clone() for name, adapter in trainer.network.adapters.items()}
    trainer.fit(resume=False)
    moved: dict[int | None, list[float]] = {}
    for name, adapter in trainer.network.adapters.items():
        moved.setdefault(layout.block_of(name), []).append(float((adapter.up.detach() - before[name]).abs().max()))
    expected = {block: 1e-3 * (1.0 if block is None else rates[block]) for block in moved}
    assert {0.5e-3, 1e-3, 2e-3} == set(expected.values())
    assert {block: max(values) for block, values in moved.items()} == pytest.approx(expected, rel=1e-3)


def test_a_block_s_alpha_is_its_rank_unless_one_is_given(tiny):
    def alphas(**network) -> set[float]:
        options = load(NetworkOptions, "network", values={"unet": "attention", "text_encoder": None, **network})
        return {adapter.alpha for adapter in make_network(tiny, options, seed=0).adapters.values()}

    assert alphas(blocks={"ranks": [2] * 24 + [3]}) == {2.0, 3.0}
    assert alphas(blocks={"ranks": [2] * 24 + [3]}, alpha=1.5) == {1.5}
    assert alphas(blocks={"ranks": [2] * 24 + [3]}, unet={"placement": "attention", "alpha": 2.5}) == {2.5}
    assert alphas(blocks={"ranks": [2] * 25, "alphas": [1.0] * 24 + [0.5]}) == {1.0, 0.5}
    assert alphas(blocks={"rates": [1] * 25}, rank=3) == {3.0}


def test_dry_run_lists_the_blocks(options_file, capsys):  # noqa: F811
    blocks = [f"network.blocks.ranks={RANKS}", f"network.blocks.rates={RATES}"]
    assert main(["train", str(options_file), *blocks, "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {cells[1]: cells[2:] for line in lines if (cells := [cell.strip() for cell in line.strip("|").split("|")])}
    assert rows["middle_block"] == ["8", "3", "3", "0.0005"]
    assert rows["output_blocks.3"] == ["8", "1", "1", "0.002"]
    assert rows["output_blocks.11"] == ["0", "", "", ""]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "network.blocks.ranks=[4, 4]",
            "network.blocks.ranks: expected 25 values, one per block of this base, found 2",
        ),
        ("network.blocks.rates=[-1]", "network.blocks.rates: expected 0 or more"),
        ("network.blocks.ranks=[1.5]", "network.blocks.ranks[0]: expected a whole number"),
        ("network.blocks={}", "network.blocks.ranks: expected at least one of ranks, alphas and rates"),
        ("network.blocks={ranks: [1], rates: [1, 1]}", "expected as many values"),
        (f"network.blocks.ranks={[0] * 25}", "nothing is left to change"),
    ],
)
def test_blocks_that_cannot_be_are_explained(options_file, tmp_path, capsys, override, expected):  # noqa: F811
    assert main(["train", str(options_file), override]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
