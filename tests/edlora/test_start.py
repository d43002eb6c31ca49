"""Where a concept starts: its tokens' first values and its network's places."""

from __future__ import annotations

import pytest
import torch

from mixshow.core.errors import MixshowError
from mixshow.edlora.attention_maps import concept_positions
from mixshow.edlora.embedding import ConceptEmbedding
from mixshow.edlora.initialiser import initial_vectors, parse_initialiser, parse_tokens
from mixshow.edlora.losses import attention_error, masked_error
from mixshow.edlora.placement import placed_targets

TOKENS = ["<pip1>", "<pip2>"]


def test_tokens_are_parsed():
    assert parse_tokens("<pip1>+<pip2>") == parse_tokens("<pip1> <pip2>") == TOKENS


@pytest.mark.parametrize("text", ["", "pip1+pip2", "<pip1>+pip2", "<pip1><pip2>", "<pip1>+<pip1>"])
def test_wrong_tokens_are_refused(text):
    with pytest.raises(MixshowError, match="concept tokens"):
        parse_tokens(text)


@pytest.mark.parametrize(
    "text", ["boy", "<rand-0.1>+boy+boy", "<rand-x>+boy", "<rand--1>+boy", "<other>+boy", "+boy", "<rand-nan>+boy"]
)
def test_wrong_initialisers_are_refused(text):
    with pytest.raises(MixshowError, match="initialiser"):
        parse_initialiser(text, TOKENS)


def test_initial_vectors_are_random_of_the_given_size_or_a_word_of_the_base(tiny):
    vectors = initial_vectors(tiny, TOKENS, "<rand-0.1>+boy")
    layers, width = tiny.topology.layers, tiny.topology.text_width
    assert vectors["<pip1>"].shape == (layers, width)
    assert 0.03 < vectors["<pip1>"][0].std() < 0.3
    assert torch.equal(vectors["<pip1>"][0], vectors["<pip1>"][-1])
    row = tiny.text_encoder.get_input_embeddings().weight[tiny.tokenizer("boy", add_special_tokens=False).input_ids[0]]
    assert torch.equal(vectors["<pip2>"][3], row)
    again = initial_vectors(tiny, TOKENS, "<rand-0.1>+boy", seed=1)
    assert not torch.equal(again["<pip1>"], vectors["<pip1>"])


def test_a_word_of_several_tokens_is_refused(tiny):
    with pytest.raises(MixshowError, match=r"'zebra'.*tokens"):
        initial_vectors(tiny, TOKENS, "<rand-0.1>+zebra")


def test_placements_cover_what_their_names_say(tiny):
    attention = placed_targets("unet", tiny.unet, "attention")
    assert len(attention) == 32 * 4
    assert placed_targets("unet", tiny.unet, "Attention") == attention
    more = placed_targets("unet", tiny.unet, "transformer")
    assert len(more) == 16 * 12 and set(attention) < set(more)
    assert more == placed_targets("unet", tiny.unet, "Transformer2DModel")
    text = placed_targets("text_encoder", tiny.text_encoder, "attention")
    assert len(text) == 2 * 4 and all(name.startswith("lora_te_text_model_encoder_layers_") for name in text)
    assert len(placed_targets("text_encoder", tiny.text_encoder, "CLIPEncoderLayer")) == 2 * 6
    with pytest.raises(MixshowError, match="did you mean 'attention'"):
        placed_targets("unet", tiny.unet, "atention")


def test_positions_of_concept_tokens_and_a_prompt_too_long_for_them(tiny):
    vectors = initial_vectors(tiny, TOKENS, "<rand-0.1>+boy")
    base, attachment = ConceptEmbedding(vectors).attach(tiny)
    with attachment:
        found = concept_positions(base, ["<pip1> <pip2>", "photo of a <pip1> <pip2>"], TOKENS)
        assert found.tolist() == [[1, 2], [4, 5]]
        with pytest.raises(MixshowError, match="nearer to the front"):
            concept_positions(base, ["photo " * 40 + "<pip1> <pip2>"], TOKENS)


def test_losses_of_empty_and_full_masks_are_numbers():
    prediction, target = torch.ones(2, 4, 4, 4), torch.zeros(2, 4, 4, 4)
    mask = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4)])
    assert masked_error(prediction, target, mask).tolist() == [0, 4]
    maps = [torch.rand(2, 2, 4, 4)]
    assert attention_error(maps, torch.ones(2, 1, 4, 4), identity=False) == 0
    assert attention_error(maps, mask, identity=True) > 0
