"""`format: lora`: the file is the fused model, here and in plain diffusers."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from torch import Tensor

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.config.fuse import FuseOptions
from mixshow.edlora.concept import Concept, attach_concepts, load_concept, save_concept
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion.collect import Collection
from mixshow.fusion.distill import distill
from mixshow.fusion.factors import as_low_rank, loss_report
from mixshow.fusion.fuse import fuse
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.layers import Stage, layers_of, put_in_place
from mixshow.fusion.lora_folder import Naming, save_lora_folder
from mixshow.fusion.members import Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.solvers import LBFGS, Exact
from mixshow.lycoris import create_network
from mixshow.models import Base, prompt_states, save_base
from mixshow.recipes.fuse_refine import Cut, cut_to_factors
from tests.tiny import tiny_concept

SMALL = Collection(text_prompts=["a photo of {concept}", "{concept}"], picture_prompts=["{concept}"], steps=2)


def cost(error: Tensor, metric: Tensor) -> float:
    return float((error @ metric @ error.T).trace())


def fused(base: Base, members: list[Member], **options: object) -> Fusion:
    solvers = {**dict.fromkeys(Stage, Exact()), Stage.SPATIAL: LBFGS()}
    return fuse(base, members, SMALL, Objective(1e-2, 0.3, ["a dog"]), solvers, **options)  # type: ignore[arg-type]


def pair(base: Base) -> list[Member]:
    return [
        Member(tiny_concept(base, "duck", seed=0), 2.0, unet=0.7),
        Member(tiny_concept(base, "fox", seed=1, rank=1)),
    ]


def convolutional(base: Base) -> Member:
    """A concept on attention, feed-forward and convolutions, of ranks that differ."""
    preset = {
        "unet_target_module": ["Attention", "FeedForward"],
        "unet_target_name": [r"down_blocks\.\d\.resnets\.0\.conv1", r"mid_block\.resnets\.0\.conv2", "conv_out"],
        "text_encoder_target_module": ["CLIPAttention", "CLIPMLP"],
    }
    network = create_network(base.models, algo="locon", dim=3, conv_dim=2, preset=preset)
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    concept = tiny_concept(base, "owl")
    return Member(Concept(concept.embeddings, network.file_tensors(), concept.metadata, "owl"))


def prediction(base: Base, prompt: str) -> Tensor:
    """A model's output for a prompt, layer-wise tokens included."""
    height = 8
    latents = torch.randn(1, 4, height, height, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), layerwise_states(base.unet):
        states = prompt_states(base, [prompt])
        return base.unet(latents, torch.tensor(500), **states.for_unet(latents)).sample


def assert_same_predictions(fusion: Fusion, base: Base, concept: Concept, prompt: str, tolerance: float) -> None:
    model, attachment = fusion.attach(base)
    with attachment:
        expected = prediction(model, prompt)
    model, attachment = attach_concepts(base, [concept])
    with attachment:
        found = prediction(model, prompt)
    assert (found - expected).norm() <= tolerance * expected.norm()
    assert (prediction(base, "a dog") - expected).norm() > 100 * tolerance * expected.norm()


def test_the_file_is_the_fused_model(each_base: Base, tmp_path: Path) -> None:
    members = pair(each_base)
    fusion = fused(each_base, members)
    same, factors = as_low_rank(each_base, members, fusion)
    assert {each.rank for each in factors.values()} == {3} and loss_report(factors)["exact"]
    for path, change in fusion.changes.items():
        assert (same.changes[path] - change).norm() <= 1e-6 * change.norm()
    save_lora_folder(each_base, members, factors, fusion.embeddings, tmp_path / "lora")
    concept = load_concept(tmp_path / "lora" / "concept.safetensors")
    assert concept.text == "<duck1> <duck2> <fox1> <fox2>"
    assert_same_predictions(fusion, each_base, concept, "a <duck1> <duck2> and a <fox1> <fox2>", 1e-5)


def test_convolutions_and_several_ranks(tiny: Base, tmp_path: Path) -> None:
    members = [convolutional(tiny), Member(tiny_concept(tiny, "fox", seed=1))]
    fusion = fused(tiny, members)
    _, factors = as_low_rank(tiny, members, fusion)
    assert {each.rank for each in factors.values()} >= {2, 3, 5}
    assert {each.exact_rank == each.rank for each in factors.values()} == {True}
    save_lora_folder(tiny, members, factors, fusion.embeddings, tmp_path / "lora")
    concept = load_concept(tmp_path / "lora" / "concept.safetensors")
    assert_same_predictions(fusion, tiny, concept, "a <owl1> <owl2> and a <fox1> <fox2>", 1e-5)


def test_a_lower_rank_says_what_it_loses(tiny: Base, tmp_path: Path) -> None:
    members = pair(tiny)
    fusion = fused(tiny, members, keep_metrics=True)
    assert fusion.metrics.keys() == fusion.changes.keys()
    losses = []
    for rank in (1, 2, 3):
        smaller, factors = as_low_rank(tiny, members, fusion, rank=rank)
        about = loss_report(factors)
        assert (about["rank"], about["exact_rank"], about["exact"]) == (rank, 3, rank == 3)
        losses.append(about["mean_lost"])
        for path, each in factors.items():
            metric, error = fusion.metrics[path], fusion.changes[path] - smaller.changes[path]
            assert each.lost == pytest.approx(cost(error, metric) / cost(fusion.changes[path], metric), abs=1e-6)
    assert losses[0] > losses[1] > losses[2] == 0
    smaller, factors = as_low_rank(tiny, members, fusion, rank=1)
    save_lora_folder(tiny, members, factors, fusion.embeddings, tmp_path / "lora")
    concept = load_concept(tmp_path / "lora" / "concept.safetensors")
    assert_same_predictions(smaller, tiny, concept, "a <duck1> <duck2> and a <fox1> <fox2>", 1e-5)


# --- plain diffusers


def picture(pipeline: StableDiffusionPipeline, embeddings: list[dict[str, Tensor]]) -> Tensor:
    """Latents that a pipeline draws, its concept tokens being the mean vectors of a file."""
    pipeline.set_progress_bar_config(disable=True)
    parts = [("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")]
    for (encoder, tokenizer), tokens in zip(parts, embeddings):
        for token, vector in tokens.items():
            pipeline.load_textual_inversion(
                vector, token=token, text_encoder=getattr(pipeline, encoder), tokenizer=getattr(pipeline, tokenizer)
            )
    generator = torch.Generator().manual_seed(1)
    return pipeline(
        "a photo of <duck1> <duck2> and <fox1> <fox2>", num_inference_steps=2, generator=generator, height=64, width=64,
        output_type="latent",
    ).images  # fmt: skip


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
@pytest.mark.parametrize("kind", ["tiny", "sd2", "xl", "several ranks"])
def test_plain_diffusers_draws_the_same_as_with_the_folder(
    naming: Naming, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed; diffusers loads no LoRA files without it")
    several = kind == "several ranks"
    base: Base = request.getfixturevalue("tiny" if several else kind)
    pipeline_class = StableDiffusionXLPipeline if kind == "xl" else StableDiffusionPipeline
    members = pair(base)
    if several:
        renamed = dict(zip(("<fox1>", "<fox2>"), members[1].concept.embeddings.values()))
        members[1] = Member(Concept(renamed, convolutional(base).concept.network))
    fusion = fused(base, members)
    save_base(base, tmp_path / "base")
    with put_in_place({layer.path: layer.module for layer in layers_of(base).values()}, fusion.changes):
        save_base(base, tmp_path / "fused")
    _, factors = as_low_rank(base, members, fusion)
    assert len({each.rank for each in factors.values()}) == (3 if several else 1)
    save_lora_folder(base, members, factors, fusion.embeddings, tmp_path / "lora", naming=naming)
    embeddings = [load_file(path) for path in sorted((tmp_path / "lora").glob("embeddings*"))]
    assert list(embeddings[0]) == ["<duck1>", "<duck2>", "<fox1>", "<fox2>"] and len(embeddings) == len(
        base.text_widths
    )
    options = {"safety_checker": None} if kind != "xl" else {}
    expected = picture(pipeline_class.from_pretrained(tmp_path / "fused", **options), embeddings)
    untouched = picture(pipeline_class.from_pretrained(tmp_path / "base", **options), embeddings)
    pipeline = pipeline_class.from_pretrained(tmp_path / "base", **options)
    pipeline.load_lora_weights(tmp_path / "lora")
    found = picture(pipeline, embeddings)
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert (untouched - expected).norm() > 1e-2 * expected.norm()


# --- the command


@pytest.fixture
def stage(tiny: Base, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_concept(tiny_concept(tiny, "duck", seed=0), "duck.safetensors")
    save_concept(tiny_concept(tiny, "fox", seed=1), "fox.safetensors")
    Path("fuse.yml").write_text(
        f"base: {tiny_folder}\nconcepts: [{{file: duck.safetensors}}, {{file: fox.safetensors}}]\noutput: fused\n"
        "format: lora\nstatistics: {steps: 1, text_prompts: ['a {concept}'], picture_prompts: ['{concept}']}\n"
        "refine: {method: none, steps: 2, prompts: ['{concept}']}\nanchor: {captions: ['a dog']}\n"
        "report: {steps: 1, prompts: ['a {concept} in the rain'], captions: ['a boy']}\n"
    )
    return tmp_path


def test_the_command_writes_a_network_file(stage: Path, tiny_folder: Path) -> None:
    assert main(["fuse", "fuse.yml"]) == 0
    assert sorted(path.name for path in (stage / "fused").iterdir()) == [
        "concept.safetensors", "embeddings.safetensors", "fusion_report.json", "pytorch_lora_weights.safetensors",
    ]  # fmt: skip
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert (report["lora"]["rank"], report["lora"]["exact"], report["lora"]["worst_lost"]) == (4, True, 0.0)
    as_folder = ["format=folder", "output=whole"]
    assert main(["fuse", "fuse.yml", *as_folder]) == 0
    whole = json.loads((stage / "whole" / "fusion_report.json").read_text())
    assert report["held_out"]["errors"] == pytest.approx(whole["held_out"]["errors"], rel=1e-4)
    sampled = ["sample", "a <fox1> <fox2>", "--model", str(tiny_folder), "--concept", "fused/concept.safetensors"]
    assert main([*sampled, "steps=1", "--out", "fox.png"]) == 0
    assert (stage / "fox.png").is_file()


def test_a_distilled_network_file_is_exact(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distilled = ["refine.method=distill", "refine.rounds=1"]
    assert main(["fuse", "fuse.yml", *distilled, "refine.low_rank=false"]) == EXIT_USER_ERROR
    assert "lora.rank: expected a rank, or lora.energy" in capsys.readouterr().err
    assert main(["fuse", "fuse.yml", *distilled]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert (report["lora"]["rank"], report["lora"]["exact"], report["lora"]["worst_lost"]) == (4, True, 0.0)
    assert report["held_out"]["errors"] != report["held_out_solved"]["errors"]
    assert main(["fuse", "fuse.yml", *distilled, "format=folder", "output=whole", "refine.low_rank=true"]) == 0
    whole = json.loads((stage / "whole" / "fusion_report.json").read_text())
    assert report["held_out"]["errors"] == pytest.approx(whole["held_out"]["errors"], rel=1e-4)


@pytest.mark.slow
def test_a_rank_is_cut_to_before_it_is_distilled(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics: list[weakref.ref[Tensor]] = []

    def cut(base: Base, members: list[Member], fusion: Fusion, options: FuseOptions) -> Cut:
        metrics.extend(map(weakref.ref, fusion.metrics.values()))
        return cut_to_factors(base, members, fusion, options)

    def distilled(*given: Any, **options: Any) -> Fusion:
        assert metrics and all(each() is None for each in metrics)  # every S, which is large, is gone by now
        return distill(*given, **options)

    monkeypatch.setattr("mixshow.recipes.fuse.cut_to_factors", cut)
    monkeypatch.setattr("mixshow.recipes.fuse_refine.distill", distilled)
    assert main(["fuse", "fuse.yml", "refine.method=distill", "lora.energy=0.9", "report.heldout=false"]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert 0 < report["refining"]["cut"]["worst_lost"] <= 0.1 and not report["refining"]["cut"]["exact"]
    ranks = {path: each["rank"] for path, each in report["refining"]["cut"]["layers"].items()}
    assert {path: each["rank"] for path, each in report["lora"]["layers"].items()} == ranks
    assert report["lora"]["worst_lost"] == 0


def test_what_a_network_file_cannot_hold_is_refused(
    stage: Path, tiny: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    full = create_network(tiny.models, algo="full", targets=["lora_unet_mid_block_attentions_0_proj_in"])
    concept = tiny_concept(tiny, "cat")
    save_concept(Concept(concept.embeddings, full.file_tensors()), "biased.safetensors")
    rotated = create_network(
        tiny.models,
        algo="diag-oft",
        dim=2,
        targets=["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"],
    )
    save_concept(Concept(tiny_concept(tiny, "dog").embeddings, rotated.file_tensors()), "rotated.safetensors")
    files = "concepts=[{file: biased.safetensors}, {file: rotated.safetensors}]"
    assert main(["fuse", "fuse.yml", files]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert "biased.safetensors: changes biases or normalisations (1 layers" in said and "use format=folder" in said
    assert "rotated.safetensors: 1 of its 1 changes have no low rank" in said
    assert main(["fuse", "fuse.yml", "concepts=[{file: rotated.safetensors}]", "lora.rank=3"]) == 0
    assert main(["fuse", "fuse.yml", "format=folder", "lora.rank=3"]) == EXIT_USER_ERROR
    assert main(["fuse", "fuse.yml", "lora.energy=2", "lora.rank=0"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert "energy: expected more than 0" in said and "rank: expected at least 1" in said
