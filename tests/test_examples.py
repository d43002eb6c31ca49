"""The programs under examples/ do what they say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from mixshow.fusion.factors import as_low_rank
from mixshow.fusion.layers import layers_of, put_in_place
from mixshow.fusion.lora_folder import save_lora_folder
from mixshow.models import Base, save_base
from mixshow.models.embedding_table import with_concept_tokens
from tests.fusion.test_lora_output import fused, pair

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROMPT = "a photo of <duck1> <duck2>"


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def difference(first: Path, second: Path) -> float:
    """Mean difference of two pictures' values, of 255."""
    a, b = (np.asarray(Image.open(path), dtype=np.float64) for path in (first, second))
    return float(np.abs(a - b).mean())


def test_a_fused_network_file_in_plain_diffusers(tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed; diffusers loads no LoRA files without it")
    members = pair(tiny)
    fusion = fused(tiny, members)
    _, factors = as_low_rank(tiny, members, fusion)
    save_lora_folder(tiny, members, factors, fusion.embeddings, tmp_path / "lora")
    save_base(tiny, tmp_path / "base")
    with put_in_place({layer.path: layer.module for layer in layers_of(tiny).values()}, fusion.changes):
        save_base(tiny, tmp_path / "fused")
    arguments = ["--steps", 2, "--size", 64, 64]
    run(
        monkeypatch, "fused_lora_in_diffusers.py", tmp_path / "base", tmp_path / "lora", PROMPT, tmp_path / "a.png",
        *arguments,
    )  # fmt: skip
    embeddings = load_file(tmp_path / "lora" / "embeddings.safetensors")
    for name in ("fused", "base"):
        pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / name, safety_checker=None)
        for token, vector in embeddings.items():
            pipeline.load_textual_inversion(vector, token=token)
        generator = torch.Generator().manual_seed(0)
        made = pipeline(PROMPT, num_inference_steps=2, generator=generator, width=64, height=64)
        made.images[0].save(tmp_path / f"{name}.png")
    assert Image.open(tmp_path / "a.png").size == (64, 64)
    assert difference(tmp_path / "a.png", tmp_path / "fused.png") < 0.5
    assert difference(tmp_path / "fused.png", tmp_path / "base.png") > 1


def test_regions_through_the_pipeline_class(tiny: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, attachment = with_concept_tokens(tiny, pair(tiny)[0].concept.embeddings)
    with attachment:
        save_base(known, tmp_path / "fused")
    run(
        monkeypatch, "regional_pipeline.py", tmp_path / "fused", "a toy", "<duck1> <duck2>", "a boy",
        tmp_path / "regions.png", "--steps", 1, "--size", 128, 64,
    )  # fmt: skip
    assert Image.open(tmp_path / "regions.png").size == (128, 64)
