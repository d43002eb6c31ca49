"""Tokenizer and networks: the classes and the layout of Stable Diffusion 1.x."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPTokenizer

from mixshow.puppets.networks import MAX_TOKENS, make_adapter, make_scheduler, make_text_encoder, make_unet
from mixshow.puppets.tokenizer import make_tokenizer


def test_every_word_of_the_world_is_one_token() -> None:
    tokenizer = make_tokenizer()
    text = "a photo of an alien with yellow hair and a purple shirt waving in the forest"
    assert len(tokenizer.tokenize(text)) == len(text.split())
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_unknown_text_falls_back_to_bytes() -> None:
    tokenizer = make_tokenizer()
    for text in ("zürich 42", "<pip1> xylophone", "日本"):
        numbers = tokenizer(text).input_ids
        assert numbers[0] == tokenizer.bos_token_id
        assert numbers[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in numbers[1:-1]


def test_padding_is_the_end_token_and_saving_keeps_everything(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    padded = tokenizer("a boy", padding="max_length").input_ids
    assert len(padded) == MAX_TOKENS
    assert set(padded[3:]) == {tokenizer.eos_token_id}
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("a photo of a robot, in the snow").input_ids == tokenizer("a photo of a robot, in the snow").input_ids


def test_the_unet_has_sixteen_cross_attentions_and_takes_the_adapter() -> None:
    unet = make_unet()
    assert sum(name.endswith("attn2") for name, _ in unet.named_modules()) == 16
    tokenizer = make_tokenizer()
    with torch.no_grad():
        tokens = tokenizer(["a bear"], padding="max_length", return_tensors="pt").input_ids
        hidden = make_text_encoder(tokenizer)(tokens).last_hidden_state
        residuals = make_adapter()(torch.zeros(1, 3, 128, 128))
        result = unet(torch.zeros(1, 16, 16, 16), 5, hidden, down_intrablock_additional_residuals=residuals).sample
    assert result.shape == (1, 16, 16, 16)


def test_the_noise_schedule_is_that_of_sd_1() -> None:
    signal = make_scheduler().alphas_cumprod
    assert abs(float(signal[0]) - (1 - 0.00085)) < 1e-6
    assert abs(float(signal[-1]) - 0.00466) < 1e-4
