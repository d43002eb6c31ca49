"""Weights and several windows of the text encoder, on every kind of base and with layer-wise concept tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from mixshow.edlora.concept import attach_concepts
from mixshow.models import (
    Base,
    PromptReading,
    PromptStates,
    aligned,
    make_scheduler,
    prompt_states,
    read_ids,
    read_prompts,
)
from mixshow.models.prompt_reading import prompt_windows
from mixshow.models.prompts import clip_skip_problem
from tests.tiny import tiny_base, tiny_concept

READING = PromptReading(weights=True, windows=True)
LONG = "a red dog , a blue hat , a boy on the beach , a girl in the rain , a puppet , a toy"  # more than fit


@pytest.fixture
def with_concept(each_base: Base) -> Iterator[Base]:
    known, attached = attach_concepts(each_base, [tiny_concept(each_base, "pip")])
    with attached:
        yield known


def test_plain_prompts_are_the_very_same(with_concept: Base) -> None:
    prompts = ["a <pip1> <pip2> on the beach", "", r"a dog", " "]
    plain, read = prompt_states(with_concept, prompts), read_prompts(with_concept, prompts, READING)
    assert torch.equal(plain.states, read.states)
    if plain.pooled is not None:
        assert torch.equal(plain.pooled, read.pooled)
    literal = "a (red) [hat]"
    assert torch.equal(
        prompt_states(with_concept, [literal]).states, read_prompts(with_concept, [literal], PromptReading()).states
    )
    escaped = read_prompts(with_concept, [r"a \(red\) \[hat\]"], READING)
    assert torch.equal(prompt_states(with_concept, [literal]).states, escaped.states)


def test_a_weight_moves_its_own_tokens_from_the_empty_prompt_s(with_concept: Base) -> None:
    base = with_concept
    plain = prompt_states(base, ["a <pip1> <pip2> on the beach"])
    words = base.tokenizer("a", add_special_tokens=False).input_ids
    own = slice(1 + len(words), 3 + len(words))
    found = {w: read_prompts(base, [f"a (<pip1> <pip2>:{w}) on the beach"], READING) for w in (0, 1, 1.5)}
    empty = base.vocabulary.bind(" ", 0)  # read by the encoder, where "" may be zeros
    empty_states = prompt_states(base, [empty]).states
    assert torch.allclose(found[0].states[:, :, own], empty_states[:, :, own], atol=1e-6)
    assert torch.equal(found[1].states, plain.states)
    expected = empty_states + 1.5 * (plain.states - empty_states)
    torch.testing.assert_close(found[1.5].states[:, :, own], expected[:, :, own])
    others = [i for i in range(plain.states.shape[-2]) if i not in range(own.start, own.stop)]
    assert torch.equal(found[1.5].states[:, :, others], plain.states[:, :, others])
    if plain.pooled is not None:
        assert torch.equal(found[1.5].pooled, plain.pooled)


def test_long_prompts_are_read_in_windows(with_concept: Base) -> None:
    base, limit = with_concept, with_concept.topology.max_tokens
    windows = [window.text for window in prompt_windows(base, LONG + ", <pip1> <pip2>", READING)]
    assert windows == [
        "a red dog , a blue hat , a boy on the beach , a girl in the rain ,",
        "a puppet , a toy, <pip1> <pip2>",
    ]
    read = read_prompts(base, [LONG + ", <pip1> <pip2>"], READING)
    both = prompt_states(base, windows)
    assert read.states.shape[-2] == 2 * limit
    torch.testing.assert_close(read.states[0], torch.cat([both.states[0], both.states[1]], dim=-2))
    if read.pooled is not None:
        torch.testing.assert_close(read.pooled, both.pooled[:1])
    cut = read_prompts(base, [LONG], PromptReading(weights=True))
    assert torch.equal(cut.states, prompt_states(base, [LONG]).states)


def test_ids_stand_where_the_states_do(with_concept: Base) -> None:
    base = with_concept
    prompts = ["a (<pip1> <pip2>:1.2)", LONG + ", a <pip1> <pip2>", "a BREAK dog BREAK hat"]
    ids, states = read_ids(base, prompts, READING), read_prompts(base, prompts, READING).states
    assert ids.shape == (states.shape[0], states.shape[2]) == (3, 6 * base.topology.max_tokens)
    own = (ids == base.vocabulary.ids["<pip1>"][0]).nonzero().tolist()
    assert len([place for prompt, place in own if prompt == 0]) == 6
    assert len([place for prompt, place in own if prompt == 1]) == 3
    words = len(base.tokenizer("a", add_special_tokens=False).input_ids)
    assert min(place for prompt, place in own if prompt == 0) == 1 + words


def test_where_a_prompt_is_parted(tiny: Base) -> None:
    def texts(prompt: str) -> list[str]:
        return [window.text for window in prompt_windows(tiny, prompt, READING)]

    assert texts("dog " * 22) == ["dog " * 22]
    assert [len(text.split()) for text in texts("dog " * 45)] == [22, 22, 1]
    assert texts("dog " * 21 + "<pip1> <pip2>")[1] == "<pip1> <pip2>"  # spelled: no concept of this base
    assert texts("a dog BREAK BREAK a hat BREAK") == ["a dog ", " a hat "]
    weights = prompt_windows(tiny, "dog " * 21 + "(dog dog:2)", READING)
    assert weights[0].weights == (1,) * 21 + (2,) and weights[1].weights == (2,)


def test_tokens_do_not_depend_on_how_a_prompt_is_parted(tiny: Base) -> None:
    """Words with brackets around them have the tokens they have without."""
    plain = "a photo, of red-blue dog's 3.5!"
    weighed = "a (photo,:1.5) of (red-blue:1.5) dog's (3.5!:1.5)"
    (window,) = prompt_windows(tiny, weighed, READING)
    assert tiny.tokenizer(window.text).input_ids == tiny.tokenizer(plain).input_ids


def test_states_of_other_lengths_mean_the_same(tiny: Base) -> None:
    """A prompt is attended to as alone, however many windows its neighbours have."""
    short, long = (read_prompts(tiny, [prompt], READING) for prompt in ("a dog", LONG + "," + LONG))
    padded = aligned([short, long])
    assert padded[0].states.shape == padded[1].states.shape
    layer = tiny.unet.get_submodule(tiny.topology.cross_attention[0])
    query = torch.randn(1, 9, layer.query_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone, beside = (layer(query, text.states[:, 0]) for text in (short, padded[0]))
    torch.testing.assert_close(alone, beside)
    together = read_prompts(tiny, ["a dog", LONG, LONG + "," + LONG], READING)
    assert together.states.shape[-2] == 6 * tiny.topology.max_tokens
    assert len(PromptStates.joined(aligned([short, long]))) == 2


@pytest.mark.parametrize("skip", [0, 1])
def test_clip_skip_is_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip: int) -> None:
    tiny = tiny_base(tmp_path)  # asked for hidden states, text encoders keep hooks
    if not hasattr(tiny.text_encoder, "text_model"):  # diffusers looks for it where older libraries have it
        monkeypatch.setattr(type(tiny.text_encoder), "text_model", property(lambda self: self), raising=False)
    pipeline = StableDiffusionPipeline(
        tiny.vae, tiny.text_encoder, tiny.tokenizer, tiny.unet, make_scheduler(tiny, "DDIM"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    expected, _ = pipeline.encode_prompt("a red dog", tiny.device, 1, False, clip_skip=skip or None)
    read = read_prompts(tiny, ["a red dog"], PromptReading(clip_skip=skip))
    torch.testing.assert_close(read.states[:, 0], expected)


def test_clip_skip_leaves_nothing_behind(tiny: Base) -> None:
    read_prompts(tiny, ["a red dog"], PromptReading(clip_skip=1))
    assert not any(module._forward_hooks for module in tiny.text_encoder.modules())


def test_layers_that_can_be_left_out(tiny: Base, xl: Base) -> None:
    assert clip_skip_problem(tiny, 1) is None and "expected 0 to 1" in (clip_skip_problem(tiny, 2) or "")
    assert clip_skip_problem(xl, 0) is None and "expected 0 to 0" in (clip_skip_problem(xl, 1) or "")
