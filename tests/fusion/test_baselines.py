"""Methods to compare fusion with: what they compute, on matrices and through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.config.fuse import load_fuse_options
from mixshow.core.optional import optional_import
from mixshow.edlora.concept import Concept, save_concept
from mixshow.fusion.baselines import WAYS, Changes, Plan, merge, weight_average, weighted_sum
from mixshow.fusion.layers import layers_of, put_in_place
from mixshow.fusion.members import Member
from mixshow.lycoris import create_network
from mixshow.models import Base, load_base
from tests.tiny import tiny_concept

OUT, WIDTH = 6, 9
PEFT_WAYS = ("ties", "dare", "dare_ties")


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def low_rank(rank: int, seed: int) -> Tensor:
    return random(OUT, rank, seed=seed) @ random(rank, WIDTH, seed=seed + 100)


def combined(way: str, deltas: list[Tensor], weights: list[float], plan: Plan | None = None) -> Tensor:
    return WAYS[way](Changes("layer", deltas, weights, 2), plan or Plan())


@pytest.mark.parametrize(("way", "theirs"), [("concatenate", "cat"), ("svd", "svd")])
def test_peft_combines_adapters_alike(way: str, theirs: str) -> None:
    """Two LoRAs of rank 2 on one layer, through PEFT's own command for it."""
    peft = pytest.importorskip("peft", reason="PEFT is not installed; it is in the extra 'dev'")
    model = nn.Sequential(nn.Linear(WIDTH, OUT, bias=False)).double()
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["0"])
    changed = peft.get_peft_model(model, config, adapter_name="one")
    changed.add_adapter("two", config)
    layer, deltas = changed.base_model.model[0], []
    for i, name in enumerate(("one", "two")):
        for j, part in enumerate((layer.lora_A, layer.lora_B)):
            part[name].weight.data = random(*part[name].weight.shape, seed=2 * i + j)
        deltas.append(layer.get_delta_weight(name).detach().double())
    changed.add_weighted_adapter(["one", "two"], [0.7, 0.2], "both", combination_type=theirs, svd_full_matrices=False)
    found = combined(way, deltas, [0.7, 0.2])
    torch.testing.assert_close(found, layer.get_delta_weight("both").detach().double(), rtol=1e-5, atol=1e-5)
    assert (combined("sum", deltas, [0.7, 0.2]) - found).norm() > 0.1 or way == "concatenate"


def test_svd_is_the_nearest_matrix_of_its_rank() -> None:
    deltas = [low_rank(2, 1), low_rank(2, 2)]
    total = deltas[0] + 0.5 * deltas[1]
    for rank in (None, 1, 3):
        found = combined("svd", deltas, [1.0, 0.5], Plan(rank=rank))
        rest = torch.linalg.svdvals(total)[rank or 2 :].square().sum().sqrt()
        assert torch.linalg.matrix_rank(found) == (rank or 2)
        torch.testing.assert_close((found - total).norm(), rest)


def test_ties_keeps_large_elements_of_the_elected_sign() -> None:
    """Element by element (arXiv 2306.01708, section 4): trim, elect the sign of the sum, average those that agree."""
    pytest.importorskip("peft")
    deltas, weights = [random(OUT, WIDTH, seed=s) for s in (1, 2, 3)], [1.0, 2.0, 0.5]
    kept = int(0.4 * OUT * WIDTH)
    expected = torch.zeros(OUT, WIDTH, dtype=torch.float64)
    limits = [delta.abs().flatten().sort().values[-kept] for delta in deltas]
    for row in range(OUT):
        for column in range(WIDTH):
            values = [
                float(d[row, column]) if d[row, column].abs() >= limit else 0.0 for d, limit in zip(deltas, limits)
            ]
            sign = 1 if sum(values) >= 0 else -1
            agreeing = [w * v for v, w in zip(values, weights) if v * sign > 0]
            expected[row, column] = sum(agreeing) / max(len(agreeing), 1)
    torch.testing.assert_close(combined("ties", deltas, weights, Plan(density=0.4)), expected)


@pytest.mark.parametrize("way", ["dare", "dare_ties"])
def test_dare_draws_by_its_seed_and_leaves_the_global_generator_alone(way: str) -> None:
    pytest.importorskip("peft")
    deltas, weights = [random(OUT, WIDTH, seed=s) for s in (1, 2)], [0.5, 0.5]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, again = (combined(way, deltas, weights, Plan(seed=1)) for _ in range(2))
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(first, again) and not torch.equal(first, combined(way, deltas, weights, Plan(seed=2)))
    if way == "dare":  # what is kept is scaled up by what is not, so that the sum is right on average
        drawn = torch.stack([combined(way, deltas, weights, Plan(density=0.8, seed=s)) for s in range(600)]).mean(0)
        assert (drawn - (deltas[0] + deltas[1]) / 2).norm() < 0.1 * drawn.norm()


def test_orthogonal_concepts_do_not_answer_to_each_other() -> None:
    deltas, weights = [low_rank(2, 1), low_rank(3, 2)], [1.0, 0.5]
    found = combined("orthogonal", deltas, weights)
    # The nearest orthonormal rows: the polar factor, here by its definition.
    spans = torch.cat([torch.linalg.svd(d, full_matrices=False)[2][:rank] for d, rank in zip(deltas, (2, 3))])
    values, vectors = torch.linalg.eigh(spans @ spans.T)
    apart = vectors / values.sqrt() @ vectors.T @ spans
    torch.testing.assert_close(apart @ apart.T, torch.eye(5, dtype=torch.float64))
    own = [apart[:2], apart[2:]]
    for delta, weight, mine, place in zip(deltas, weights, own, (slice(0, 2), slice(2, 5))):
        torch.testing.assert_close(found @ mine.T, weight * delta @ spans[place].T)
    outside = torch.linalg.svd(spans)[2][5:]
    assert (found @ outside.T).norm() < 1e-10


def test_orthogonal_is_the_sum_where_concepts_are_orthogonal_already() -> None:
    basis = torch.linalg.qr(random(WIDTH, 4, seed=1)).Q.T
    deltas = [random(OUT, 2, seed=2) @ basis[:2], random(OUT, 2, seed=3) @ basis[2:]]
    torch.testing.assert_close(combined("orthogonal", deltas, [1.0, 2.0]), deltas[0] + 2 * deltas[1])
    same = [deltas[0], deltas[0]]  # directions in common are shared
    assert combined("orthogonal", same, [1.0, 1.0]).isfinite().all()
    assert not combined("orthogonal", [0 * deltas[0], 0 * deltas[0]], [1.0, 1.0]).any()


# --- whole models


@pytest.mark.parametrize("way", sorted(WAYS))
def test_biases_normalisations_and_layers_of_one_concept(tiny: Base, way: str) -> None:
    if way in PEFT_WAYS:
        pytest.importorskip("peft")
    preset = {"unet_target_module": ["BasicTransformerBlock"], "text_encoder_target_module": ["CLIPAttention"]}
    network = create_network(tiny.models, algo="full", preset=preset, train_norm=True)
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    biased = Member(Concept(tiny_concept(tiny, "owl").embeddings, network.file_tensors()))
    members = [biased, Member(tiny_concept(tiny, "duck"), 0.5)]
    found, summed = merge(tiny, members, way, Plan()), weighted_sum(tiny, members)
    assert found.changes.keys() == summed.changes.keys() and len(found.embeddings) == 4
    for path, change in found.changes.items():
        assert change.shape == summed.changes[path].shape and change.isfinite().all()
    norm = "mid_block.attentions.0.transformer_blocks.0.norm1"
    if way not in PEFT_WAYS:
        assert torch.equal(found.changes[norm], summed.changes[norm])
    with put_in_place({layer.path: layer.module for layer in layers_of(tiny).values()}, found.changes):
        pass


@pytest.fixture
def stage(tiny: Base, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("duck", "fox")):
        save_concept(tiny_concept(tiny, name, seed=seed), f"{name}.safetensors")
    Path("fuse.yml").write_text(
        f"base: {tiny_folder}\nconcepts: [{{file: duck.safetensors, weight: 2}}, {{file: fox.safetensors}}]\n"
        "output: fused\nreport: {steps: 1, prompts: ['a {concept}'], captions: ['a boy']}\n"
    )
    return tmp_path


@pytest.mark.parametrize("method", ["average", *WAYS])
def test_methods_run_through_the_command(stage: Path, tiny: Base, method: str) -> None:
    if method in PEFT_WAYS:
        pytest.importorskip("peft")
    assert main(["fuse", "fuse.yml", f"method={method}", "merge.rank=1", "merge.density=0.3"]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert report["options"]["method"] == method and report["options"]["refine"]["method"] == "none"
    assert report["held_out"]["errors"] and not report["layers"] and report["seconds"]["merging"] > 0
    concepts = [tiny_concept(tiny, name, seed=seed) for seed, name in enumerate(("duck", "fox"))]
    members = [Member(concepts[0], 2.0), Member(concepts[1])]
    reference = weight_average if method == "average" else weighted_sum
    path = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    expected = tiny.unet.get_submodule(path).weight + reference(tiny, members).changes[path].float()
    found = load_base("fused").unet.get_submodule(path).weight
    assert torch.allclose(found, expected, atol=1e-6) == (method in ("sum", "average", "concatenate"))


def test_the_subspace_method_records_inputs(stage: Path) -> None:
    small = [
        "statistics.steps=1",
        "statistics.text_prompts=['a {concept}']",
        "statistics.picture_prompts=['{concept}']",
    ]
    assert main(["fuse", "fuse.yml", "method=subspace", "format=lora", *small]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert report["lora"]["exact"] and report["lora"]["rank"] == 4
    assert len(report["layers"]) == len(report["lora"]["layers"])
    assert {layer["status"] for layer in report["layers"].values()} == {"solved"}
    assert "statistics: keys and values" in report["seconds"] and "distilling" not in report["seconds"]


def test_methods_and_network_files(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fuse", "fuse.yml", "method=orthogonal", "format=lora", "report.heldout=false"]) == 0
    lora = json.loads((stage / "fused" / "fusion_report.json").read_text())["lora"]
    assert lora["exact"] and lora["rank"] == 4
    assert main(["fuse", "fuse.yml", "method=ties", "format=lora"]) == EXIT_USER_ERROR
    assert "because method=ties gives full-rank changes" in capsys.readouterr().err
    assert main(["fuse", "fuse.yml", "method=tis", "merge.density=2", "merge.rank=0"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err
    assert "method: expected one of solve, sum" in said and "merge.density" in said and "merge.rank" in said


def test_refining_another_method_is_asked_for(stage: Path) -> None:
    assert load_fuse_options("fuse.yml").refine.method == "distill"
    assert load_fuse_options("fuse.yml", ["method=sum"]).refine.method == "none"
    assert load_fuse_options("fuse.yml", ["method=sum", "preset=published"]).statistics.text_rows == "concept"
    assert load_fuse_options("fuse.yml", ["method=sum", "refine.method=distill"]).refine.method == "distill"


def test_without_peft_the_extra_is_named(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(module: str, **options: str) -> None:
        optional_import(f"{module}.not.there", **options)

    monkeypatch.setattr("mixshow.fusion.baselines.optional_import", missing)
    assert main(["fuse", "fuse.yml", "method=dare"]) == EXIT_USER_ERROR
    assert "pip install 'mixshow[peft]'" in capsys.readouterr().err
    assert not (stage / "fused").exists()
