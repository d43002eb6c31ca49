"""Networks of other programs through `mixshow fuse`: trigger words, embeddings, mixtures, one model only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixshow.cli.main import EXIT_USER_ERROR, main
from mixshow.core.files import read_json
from mixshow.edlora.concept import attach_concepts, load_concept, save_concept
from mixshow.edlora.layerwise import layerwise_states
from mixshow.formats import named_by, read_network_concept
from mixshow.fusion.build import build_problems
from mixshow.fusion.collect import Collection, key_value_statistics
from mixshow.fusion.fuse import fuse
from mixshow.fusion.heldout import HeldOut, HeldOutPlan
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.members import Member
from mixshow.fusion.objective import Objective
from mixshow.fusion.solvers import Exact
from mixshow.fusion.statistics import LayerStatistics
from mixshow.lycoris import Network, create_network
from mixshow.models import Base, load_base, prompt_states
from mixshow.models.base import CONCEPT_CONFIG
from tests.tiny import tiny_concept

CONVOLUTION, KEY = "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def network(base: Base, model: str, algo: str, targets: list[str], seed: int) -> Network:
    """A network away from its start on modules whose names end so."""
    found = create_network({model: base.models[model]}, algo=algo, dim=2, alpha=1, targets=targets)
    generator = torch.Generator().manual_seed(seed)
    for parameter in found.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return found


def names(base: Base, *endings: str) -> list[str]:
    return [name for name, layer in layers_of(base).items() if layer.path.endswith(endings)]


@pytest.fixture
def stage(tiny: Base, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base, files of several programs and fast options."""
    monkeypatch.chdir(tmp_path)
    save_concept(tiny_concept(tiny, "duck"), "duck.safetensors")
    network(tiny, "unet", "locon", names(tiny, "attn2.to_k", "attn1.to_q"), 1).save("unet.safetensors")
    network(tiny, "unet", "lokr", names(tiny, "conv1", "attn2.to_k"), 2).save("lokr.safetensors")
    network(tiny, "text_encoder", "loha", names(tiny, "self_attn.q_proj"), 3).save("text.safetensors")
    torch.save({"<cat>": torch.randn(16, generator=torch.Generator().manual_seed(4))}, "cat.bin")
    Path("fuse.yml").write_text(
        f"base: {tiny_folder}\noutput: fused\n"
        "concepts:\n- {file: duck.safetensors}\n- {file: unet.safetensors, trigger: red toy}\n"
        "- {file: lokr.safetensors, embedding: cat.bin}\n- {file: text.safetensors, trigger: man}\n"
        "statistics: {steps: 1, text_prompts: ['a {concept}'], picture_prompts: ['{concept}']}\n"
        "refine: {steps: 2, rounds: 2, prompts: ['{concept}']}\n"
        "anchor: {captions: ['a dog']}\nreport: {steps: 1, prompts: ['a {concept} in the rain'], captions: ['a boy']}\n"
    )
    return tmp_path


@pytest.mark.slow
def test_a_mixture_of_programs_algorithms_and_models(stage: Path) -> None:
    assert main(["fuse", "fuse.yml"]) == 0
    report = json.loads((stage / "fused" / "fusion_report.json").read_text())
    assert set(report["held_out"]["errors"]) == {"<duck1> <duck2>", "red toy", "<cat>", "man"}
    assert [each["trigger"] for each in report["concepts"]] == [None, "red toy", None, "man"]
    only_one = report["layers"][CONVOLUTION]["residuals"]
    assert [name for name, each in only_one.items() if each["before"] > 0] == ["<cat>"]
    assert all(each["after"] > 0 for each in only_one.values())  # the others' inputs count where they change nothing
    shared = report["layers"][KEY]["residuals"]
    assert {name for name, each in shared.items() if each["before"] > 0} == {"<duck1> <duck2>", "red toy", "<cat>"}
    config = json.loads((stage / "fused" / CONCEPT_CONFIG).read_text())
    assert list(config) == ["<duck1>", "<duck2>", "<cat>"]  # as Mix-of-Show has it: tokens, no trigger words
    assert load_base("fused").vocabulary.tokens == ("<duck1>", "<duck2>", "<cat>")


def test_networks_without_any_token(stage: Path, tiny_folder: Path) -> None:
    concepts = "concepts=[{file: unet.safetensors, trigger: red toy}, {file: text.safetensors, trigger: man}]"
    plain = ["refine.method=none", "report.heldout=false"]
    assert main(["fuse", "fuse.yml", concepts, *plain]) == 0
    assert not (stage / "fused" / CONCEPT_CONFIG).exists()
    assert main(["fuse", "fuse.yml", concepts, *plain, "format=lora", "output=lora"]) == 0
    assert sorted(path.name for path in (stage / "lora").iterdir()) == [
        "concept.safetensors", "fusion_report.json", "pytorch_lora_weights.safetensors",
    ]  # fmt: skip
    fused, base = load_base("fused"), load_base(tiny_folder)
    assert read_json("lora/fusion_report.json")["concepts"][0]["trigger"] == "red toy"
    tuned, attachment = attach_concepts(base, [load_concept("lora/concept.safetensors")])
    latents, time = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(5)
    with attachment, torch.no_grad():
        states = {model: prompt_states(model, ["a red toy"]) for model in (fused, tuned)}
        drawn = []
        for model, text in states.items():
            with layerwise_states(model.unet):
                drawn.append(model.unet(latents, time, **text.for_unet(latents)).sample)
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-5)


def test_the_base_of_the_denominator_reads_the_words(stage: Path, tiny: Base) -> None:
    """E is 1 for the base itself, and 0 for the network's own model."""
    concept = named_by(read_network_concept("unet.safetensors", tiny), "red toy", tiny)
    member = Member(concept)
    held_out = HeldOut(tiny, [member], HeldOutPlan(["a {concept}"], ["a boy"], steps=1))
    assert held_out.score(tiny).errors["red toy"] == 1
    with member.in_place(tiny) as tuned:
        assert held_out.score(tuned).errors["red toy"] == 0


def test_published_rows_of_words_are_those_of_tokens(tiny: Base) -> None:
    layers = [layer for layer in layers_of(tiny).values() if layer.stage is Stage.KEY_VALUE]
    rows = {
        words: key_value_statistics(tiny, layers, ["a red toy in the rain"], every_position=False, words=words)
        for words in ("", "red toy")
    }
    assert {each.rows for each in rows[""].values()} == {1}  # the end token alone
    assert {each.rows for each in rows["red toy"].values()} == {3}


def test_the_published_preset_takes_words_too(stage: Path) -> None:
    assert main(["fuse", "fuse.yml", "preset=published", "refine.method=none", "report.heldout=false"]) == 0


def test_a_layer_that_one_concept_leaves_alone() -> None:
    """The dense least-squares problem in which its change there is zero."""
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) for rows in (40, 50))
    delta = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    recorded = [{"a": LayerStatistics.of_rows(rows)} for rows in (one, two)]
    problems = build_problems([{"a": delta}, {}], recorded, weights=[1.0, 3.0])
    rows = torch.cat([one * (0.25 / 40) ** 0.5, two * (0.75 / 50) ** 0.5])
    outputs = torch.cat([one @ delta.mT * (0.25 / 40) ** 0.5, torch.zeros(50, 3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, outputs).solution.mT
    torch.testing.assert_close(Exact().solve(problems)[0].change.double(), expected, rtol=1e-5, atol=1e-6)


def test_every_kind_of_base(each_base: Base, tmp_path: Path) -> None:
    """A network under its own tokens and, once more, under words, fused on 1.x, 2.x and XL."""
    network(each_base, "unet", "locon", names(each_base, "attn2.to_k"), 1).save(tmp_path / "a.safetensors")
    sides = [torch.randn(2, width) for width in each_base.text_widths]
    vectors = {"emb_params": sides[0]} if len(sides) == 1 else {"clip_l": sides[0], "clip_g": sides[1]}
    save_file(vectors, tmp_path / "cat.safetensors")
    cat = read_network_concept(tmp_path / "a.safetensors", each_base, embedding=tmp_path / "cat.safetensors")
    toy = named_by(read_network_concept(tmp_path / "a.safetensors", each_base), "red toy", each_base)
    members = [Member(cat), Member(toy)]
    few = Collection(text_prompts=("a {concept}",), picture_prompts=("{concept}",), steps=1)
    fusion = fuse(each_base, members, few, Objective(ridge=1e-6), dict.fromkeys(Stage, Exact()))
    held_out = HeldOut(each_base, members, HeldOutPlan(["a {concept}"], ["a boy"], steps=1))
    fused, attachment = fusion.attach(each_base)
    with attachment:
        assert fused.vocabulary.tokens == ("<cat1>", "<cat2>")
        scores = held_out.score(fused)
    assert list(scores.errors) == ["<cat1> <cat2>", "red toy"]
    assert max(scores.errors.values()) < 0.01  # both are one network, of which nothing is lost on recorded prompts
    assert each_base.vocabulary.tokens == ()


@pytest.mark.parametrize(
    ("concepts", "expected"),
    [
        (
            "{file: unet.safetensors}",
            "concepts[0]: unet.safetensors: a network without tokens; say how prompts name it",
        ),
        ("{file: unet.safetensors, tokens: <a>}", "has no tokens that '<a>' could rename; give trigger"),
        ("{file: unet.safetensors, trigger: <a> toy}", "the trigger names <a>, which it has no embedding of"),
        ("{file: duck.safetensors, embedding: cat.bin}", "has embeddings of its own (<duck1> <duck2>)"),
        ("{file: cat.bin, trigger: cat}", "found an embedding; give it as embedding, beside a network"),
        (
            "{file: zero.safetensors, trigger: toy}",
            "zero.safetensors: its network changes nothing and it has no tokens",
        ),
        ("{file: unet.safetensors, trigger: toy, alpha: 0}", "changes nothing and it has no tokens"),
        (
            "{file: unet.safetensors, trigger: toy}, {file: text.safetensors, trigger: toy}",
            "concepts[1]: trigger 'toy' is also that of concepts[0]",
        ),
        (
            "{file: lokr.safetensors, embedding: cat.bin}, {file: unet.safetensors, embedding: cat.bin}",
            "concepts[1]: token <cat> is also used by concepts[0]; give one of them other tokens, for example tokens: "
            "'<cat-1>'",
        ),
    ],
)
def test_one_line_for_what_is_wrong(
    concepts: str, expected: str, stage: Path, tiny: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    create_network({"unet": tiny.unet}, dim=2, targets=names(tiny, "attn2.to_k")).save("zero.safetensors")
    assert main(["fuse", "fuse.yml", f"concepts=[{concepts}]"]) == EXIT_USER_ERROR
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and expected in said[0], said
    assert not Path("fused").exists()
