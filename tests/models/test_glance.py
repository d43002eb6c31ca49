from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_json, write_json
from mixshow.models import Base, save_base
from mixshow.models.base import CONCEPT_CONFIG
from mixshow.models.embedding_table import with_concept_tokens
from mixshow.models.glance import glance_at
from tests.models.checkpoints import published_shape
from tests.tiny import KINDS


def test_a_folder_s_configurations_tell_its_geometry(each_base: Base, tmp_path: Path) -> None:
    save_base(each_base, tmp_path / "base")
    for weights in (tmp_path / "base").rglob("*.safetensors"):
        weights.unlink()
    found = glance_at(tmp_path / "base")
    assert found.size_multiple == each_base.topology.size_multiple
    assert found.vocabulary.tokens == ()


def test_a_fused_model_s_tokens_and_missing_autoencoder(tiny_folder: Path, tmp_path: Path) -> None:
    fused = shutil.copytree(tiny_folder, tmp_path / "fused")
    write_json(fused / CONCEPT_CONFIG, {"<a1>": {"concept_token_ids": [9], "concept_token_names": ["<new0>"]}})
    shutil.rmtree(fused / "vae")
    assert glance_at(fused).vocabulary.tokens == ("<a1>",)
    assert glance_at(fused).size_multiple is None
    assert glance_at(fused, vae=tiny_folder).size_multiple == glance_at(tiny_folder).size_multiple


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_file_tells_its_concept_tokens(kind: str, tmp_path: Path) -> None:
    base = published_shape(kind)
    rows = torch.zeros(base.topology.layers, base.topology.text_width)
    with_tokens, attachment = with_concept_tokens(base, {"<a.1>": rows, "<a2>": rows})
    with attachment:
        save_base(with_tokens, tmp_path / "fused.safetensors")
    found = glance_at(tmp_path / "fused.safetensors")
    assert set(found.vocabulary.tokens) == {"<a.1>", "<a2>"}
    assert found.size_multiple == base.topology.size_multiple


def test_an_inpainting_model(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "inpainting")
    configuration = folder / "unet" / "config.json"
    write_json(configuration, read_json(configuration) | {"in_channels": 9})
    with pytest.raises(MixshowError, match="reads 9 channels"):
        glance_at(folder)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(MixshowError, match="cannot be loaded as a diffusers model"):
        glance_at(tmp_path)
    with pytest.raises(MixshowError, match="no such folder or file"):
        glance_at(tmp_path / "nowhere")
