"""Fusing a tiny base and random concepts: what is recorded, what comes out, and that nothing stays behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixshow.fusion.baselines import weight_average, weighted_sum
from mixshow.fusion.collect import Collection, key_value_statistics, text_statistics
from mixshow.fusion.fuse import fuse
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.heldout import HeldOut, HeldOutPlan
from mixshow.fusion.layers import Stage, layers_of, put_in_place
from mixshow.fusion.members import Member, changed_layers, renamed
from mixshow.fusion.objective import Objective
from mixshow.fusion.solvers import Exact
from mixshow.fusion.statistics import DOUBLE_RESOLUTION
from mixshow.lycoris import Network, load_network
from mixshow.models import Base, encode_prompts, load_base, save_base
from tests.tiny import tiny_base, tiny_concept

SMALL = Collection(
    text_prompts=["a photo of {concept}", "{concept} in the rain"], picture_prompts=["{concept}"], steps=2
)
EXACT = dict.fromkeys(Stage, Exact(cutoff=DOUBLE_RESOLUTION))
PLAN = HeldOutPlan(prompts=["a picture of {concept}"], captions=["a boy"], steps=2)


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=i)) for i, name in enumerate(("duck", "fox"))]


@pytest.fixture(scope="module")
def fused_pair(tiny: Base, members: list[Member]) -> Fusion:
    return fuse(tiny, members, SMALL, Objective(1e-2, 0.3, ["", "a photo of a dog"]), EXACT)


def state(base: Base) -> dict[str, Tensor]:
    return {f"{name}.{k}": v.clone() for name, model in base.models.items() for k, v in model.state_dict().items()}


def hooks(base: Base) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)
        for model in base.models.values()
        for module in model.modules()
    )


def test_fusing_leaves_the_base_as_it_was(tiny: Base, members: list[Member]) -> None:
    before, hooks_before, size = state(tiny), hooks(tiny), len(tiny.tokenizer)
    fusion = fuse(tiny, members, SMALL, Objective(1e-2), EXACT)
    fused, attachment = fusion.attach(tiny)
    with attachment:
        assert len(fused.tokenizer) == size + 4 * tiny.topology.layers
        assert fused.text_encoder.get_input_embeddings().num_embeddings == len(fused.tokenizer)
    after = state(tiny)
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert (hooks(tiny), len(tiny.tokenizer)) == (hooks_before, size)
    assert tiny.text_encoder.config.vocab_size == size


def test_every_layer_of_the_networks_is_fused(tiny: Base, members: list[Member], fused_pair: Fusion) -> None:
    layers = [layer for stage in Stage for layer in changed_layers(tiny, members, stage)]
    assert set(fused_pair.changes) == {layer.path for layer in layers}
    assert {path.startswith("text_model.") for path in fused_pair.changes} == {True, False}
    assert len(changed_layers(tiny, members, Stage.KEY_VALUE)) == 2 * tiny.topology.layers


def test_a_single_concept_fused_exactly_is_its_own_model(tiny: Base, members: list[Member]) -> None:
    only = members[:1]
    fusion = fuse(
        tiny, only, Collection(picture_prompts=["{concept}", "a photo of {concept}"], steps=2), Objective(1e-10), EXACT
    )
    held_out = HeldOut(tiny, only, PLAN)
    fused, attachment = fusion.attach(tiny)
    with attachment:
        scores = held_out.score(fused)
    assert scores.errors[only[0].concept.text] < 0.05  # what two recorded steps do not cover
    own, attachment = weighted_sum(tiny, only).attach(tiny)
    with attachment:
        assert held_out.score(own).errors[only[0].concept.text] < 1e-3


def test_the_base_itself_has_error_one_and_no_drift(tiny: Base, members: list[Member]) -> None:
    held_out = HeldOut(tiny, members, PLAN)
    untouched = weighted_sum(tiny, [Member(m.concept, text_encoder=0, unet=0) for m in members])
    assert not untouched.changes
    base, attachment = untouched.attach(tiny)
    with attachment:
        scores = held_out.score(base)
    assert all(error == pytest.approx(1, abs=1e-3) for error in scores.errors.values())
    assert scores.drift < 1e-5


def test_fused_objective_is_below_the_average_in_every_layer(tiny: Base, members: list[Member]) -> None:
    fusion = fuse(tiny, members, SMALL, Objective(), EXACT)
    average = weight_average(tiny, members).changes
    deltas = [member.changes(tiny) for member in members]
    for path, outcome in fusion.outcomes.items():
        assert set(outcome.before) and outcome.objective_after <= outcome.objective_before
        expected = sum(d[path].flatten(1).double() for d in deltas) / 2
        torch.testing.assert_close(average[path], expected)


def test_anchoring_lowers_the_drift(tiny: Base, members: list[Member]) -> None:
    held_out = HeldOut(tiny, members, PLAN)
    drifts = []
    for weight in (0.0, 3.0):
        fused, attachment = fuse(
            tiny, members, SMALL, Objective(1e-2, weight, ["", "a photo of a dog", "a girl"]), EXACT
        ).attach(tiny)
        with attachment:
            drifts.append(held_out.score(fused).drift)
    assert drifts[1] < drifts[0]


def test_statistics_of_padded_prompts_have_all_positions(tiny: Base, members: list[Member]) -> None:
    prompts = ["a photo of <duck1> <duck2>", "<duck1> <duck2>"]
    text_layers = changed_layers(tiny, members, Stage.TEXT)
    key_values = changed_layers(tiny, members, Stage.KEY_VALUE)
    with members[0].in_place(tiny) as tuned:
        padded = text_statistics(tuned, text_layers, prompts, padded=True)
        whole = key_value_statistics(tuned, key_values, prompts, every_position=True)
        chosen = key_value_statistics(tuned, key_values, prompts, every_position=False)
        unpadded = text_statistics(tuned, text_layers, prompts, padded=False)
        states = encode_prompts(tuned, prompts)
    layers, tokens = tiny.topology.layers, tiny.topology.max_tokens
    assert padded[text_layers[0].path].rows == 2 * layers * tokens
    assert unpadded[text_layers[0].path].rows == layers * (7 + 4)  # with start and end tokens
    assert whole[key_values[0].path].rows == 2 * tokens
    assert chosen[key_values[0].path].rows == 6  # two concept tokens and the end token, in both prompts
    for layer in key_values:
        rows = states[:, layer.text_layer].flatten(0, 1).double()
        torch.testing.assert_close(whole[layer.path].moment, rows.T @ rows, rtol=1e-5, atol=1e-6)


def test_strengths_scale_the_changes(tiny: Base, members: list[Member]) -> None:
    whole = members[0].changes(tiny)
    partly = Member(members[0].concept, text_encoder=0.5, unet=0.0).changes(tiny)
    assert all(path.startswith("text_model.") for path in partly)
    for path, change in partly.items():
        torch.testing.assert_close(change, 0.5 * whole[path])


def test_a_members_network_is_read_once_for_a_base(tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def counted(models: Any, source: Any) -> Network:
        read.append(models)
        return load_network(models, source)

    monkeypatch.setattr("mixshow.fusion.members.load_network", counted)
    fresh = [Member(tiny_concept(tiny, name, seed=seed)) for seed, name in enumerate(("duck", "fox"))]
    fuse(tiny, fresh, SMALL, Objective(1e-2), EXACT)
    assert len(read) == len(fresh)
    other = tiny_base(tmp_path, seed=5)
    assert not fresh[0].changed_biases(other)
    assert len(read) == len(fresh) + 1 and read[-1] == other.models


def test_what_is_put_in_place_comes_off_after_an_error(tiny: Base, members: list[Member]) -> None:
    modules = {layer.path: layer.module for layer in layers_of(tiny).values()}
    before = state(tiny)
    changes = members[0].changes(tiny)
    broken = {**changes, "no.such.layer": torch.zeros(1)}
    with pytest.raises(KeyError):
        put_in_place(modules, broken)
    assert all(torch.equal(value, before[key]) for key, value in state(tiny).items())


def test_the_folder_is_the_fused_model(tiny: Base, fused_pair: Fusion, tmp_path: Path) -> None:
    fused, attachment = fused_pair.attach(tiny)
    prompts = ["a photo of <duck1> <duck2> and <fox1> <fox2>", "a dog"]
    with attachment:
        save_base(fused, tmp_path / "fused")
        states = encode_prompts(fused, prompts)
        weights = state(fused)
    loaded = load_base(tmp_path / "fused")
    assert loaded.vocabulary.tokens == ("<duck1>", "<duck2>", "<fox1>", "<fox2>")
    first = len(tiny.tokenizer)
    assert loaded.vocabulary.ids["<fox1>"] == tuple(range(first + 32, first + 48))
    assert loaded.vocabulary.entries["<fox1>"][0] == "<new32>"
    torch.testing.assert_close(encode_prompts(loaded, prompts), states)
    assert all(torch.equal(value, weights[key]) for key, value in state(loaded).items())


def test_fused_tokens_read_like_the_concepts_own(tiny: Base, members: list[Member]) -> None:
    only = Fusion({}, members[0].concept.embeddings)
    with members[0].in_place(tiny, stages=()) as tuned:
        expected = encode_prompts(tuned, ["a <duck1> <duck2> in the rain"])
    fused, attachment = only.attach(tiny)
    with attachment:
        torch.testing.assert_close(encode_prompts(fused, ["a <duck1> <duck2> in the rain"]), expected)


def test_renaming_tokens(members: list[Member]) -> None:
    concept = members[0].concept
    assert list(renamed(concept, ["<a>", "<b>"]).embeddings) == ["<a>", "<b>"]
    swapped = renamed(concept, ["<duck2>", "<duck1>"])
    assert torch.equal(swapped.embeddings["<duck1>"], concept.embeddings["<duck1>"])
