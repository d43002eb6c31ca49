"""Textual inversion in all its forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mixshow.core.errors import MixshowError
from mixshow.formats import read_embedding
from mixshow.formats.embeddings import bundled_embeddings, token_names
from mixshow.models import Base

ONE, TWO = torch.arange(16.0), torch.arange(32.0).reshape(2, 16)


@pytest.mark.parametrize(
    ("name", "contents", "tokens"),
    [
        ("a.bin", {"<cat>": ONE}, ["<cat>"]),
        ("b.safetensors", {"<cat>": ONE, "<dog>": ONE.clone()}, ["<cat>", "<dog>"]),
        ("c.pt", {"string_to_token": {"*": 265}, "string_to_param": {"*": TWO}, "name": "cat"}, ["<cat1>", "<cat2>"]),
        ("my cat.safetensors", {"emb_params": ONE[None]}, ["<my-cat>"]),
        ("d.safetensors", {"learned": TWO}, ["<learned1>", "<learned2>"]),
    ],
)
def test_forms(name: str, contents: dict[str, Any], tokens: list[str], tiny: Base, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(contents, path) if path.suffix == ".safetensors" else torch.save(contents, path)
    found = read_embedding(path, tiny)
    assert list(found) == tokens
    vectors = TWO if len(tokens) == 2 and tokens[0].endswith("1>") else ONE.expand(len(tokens), -1)
    for token, vector in zip(tokens, vectors):
        assert torch.equal(found[token], vector.expand(tiny.topology.layers, -1))  # all layers read the same


def test_two_text_encoders(xl: Base, tmp_path: Path) -> None:
    first, second = (torch.randn(1, width) for width in xl.text_widths)
    save_file({"clip_g": second, "clip_l": first}, tmp_path / "cat.safetensors")
    save_file({"<cat>": first[0]}, tmp_path / "learned_embeds.safetensors")
    save_file({"<cat>": second[0]}, tmp_path / "learned_embeds_2.safetensors")
    expected = torch.cat([first, second], 1).expand(xl.topology.layers, -1)
    for name in ("cat.safetensors", "learned_embeds.safetensors"):
        assert torch.equal(read_embedding(tmp_path / name, xl)["<cat>"], expected)
    (tmp_path / "learned_embeds_2.safetensors").unlink()
    with pytest.raises(MixshowError, match="expected vectors of width 16 and 24 for base 'tiny', found 16"):
        read_embedding(tmp_path / "learned_embeds.safetensors", xl)


def test_bundled_in_a_network_file(tiny: Base) -> None:
    found = bundled_embeddings({"bundle_emb.cat.string_to_param.*": TWO, "bundle_emb.v1.5.emb_params": ONE}, tiny, "f")
    assert list(found) == ["<cat1>", "<cat2>", "<v1.5>"]
    assert token_names("< a b >", 1) == ["<a-b>"]


def test_faults(tiny: Base, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for contents, expected in (
        ({"<a>": torch.ones(24)}, "width 16 for base 'tiny', found 24"),
        ({"<a>": ONE / 0}, "no numbers"),
        ({"x.lora_up.weight": torch.ones(2, 2, 1, 1)}, "expected a learned embedding of diffusers"),
    ):
        save_file(contents, path)
        with pytest.raises(MixshowError, match=expected) as error:
            read_embedding(path, tiny)
        assert "a.safetensors" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(MixshowError, match="no such embedding file"):
        read_embedding(tmp_path / "b.pt", tiny)
