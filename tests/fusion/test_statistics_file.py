"""Statistics in files: what is written comes back, shared layers once, and damage or another origin is said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_safetensors, write_safetensors
from mixshow.edlora.concept import Concept
from mixshow.fusion.collect import Collection
from mixshow.fusion.coverage import DEFAULT, KINDS, covered_layers, inputs_for, kinds_of
from mixshow.fusion.half import packed, unpacked
from mixshow.fusion.layers import layers_of
from mixshow.fusion.members import Member
from mixshow.fusion.memory import recording_bytes
from mixshow.fusion.origin import Origin, Origins, concept_hash
from mixshow.fusion.recording import record_all
from mixshow.fusion.statistics import LayerStatistics
from mixshow.fusion.statistics_file import open_statistics, write_statistics
from mixshow.fusion.wide import KeptRows
from mixshow.models import Base
from mixshow.models.identity import weights_hash
from tests.tiny import tiny_base, tiny_concept

SMALL = Collection(text_prompts=("a {concept}",), picture_prompts=("{concept}",), steps=1, kept_rows=64)
ORIGIN = Origin("b", "base", "c", ("<a>",), 1.0, 1.0, ("{concept}",), ("{concept}",), True, 1, 64, 64, 0)


def rows(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [1, 2, 6, 7])
def test_a_packed_matrix_comes_back(width: int) -> None:
    matrix = rows(9, width)
    matrix = (matrix.T @ matrix).tril()
    matrix = matrix + matrix.tril(-1).T
    assert packed(matrix).numel() <= width * (width + 2) // 2 + 1
    assert torch.equal(unpacked(packed(matrix)), matrix)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    exact, rough = LayerStatistics.of_rows(rows(9, 5)), LayerStatistics(rows(9, 4).T @ rows(9, 4), 9, 1e-7)
    norm = LayerStatistics.of_rows(rows(9, 3), elementwise=True, extended=True)
    wide = KeptRows(rows(2, 7).float(), 30, 1e-7)
    given = {"q": exact, "k": exact, "out": rough, "norm": norm, "conv": wide}
    write_statistics(tmp_path / "a.stats.safetensors", given, ORIGIN, ["norm"])
    file = open_statistics(tmp_path / "a.stats.safetensors")
    assert (file.origin, file.extended) == (ORIGIN, {"norm"})
    assert file.layers["q"] is file.layers["k"] and list(file.layers) == list(given)
    assert set(read_safetensors(file.path)[0]) == {"q", "out", "norm", "conv"}
    for name, each in given.items():
        stored = file.layers[name]
        assert (stored.rows, stored.resolution, stored.shape) == (each.rows, each.resolution, each.shape)
        expected = each.moment.float().double() if name == "out" else each.moment
        assert torch.equal(stored.moment.tril(), expected.tril())
        torch.testing.assert_close(stored.moment, stored.moment.mT, rtol=1e-14, atol=0)
    file.check_numbers()


def damaged(value: float) -> Callable[[dict[str, Tensor]], None]:
    def damage(tensors: dict[str, Tensor]) -> None:
        tensors["layer"][tensors["layer"].shape[1] + 1, 0] = value

    return damage


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "no numbers"), (-5.0, "negative eigenvalues")])
def test_damaged_moments_are_refused(value: float, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.stats.safetensors"
    write_statistics(path, {"layer": LayerStatistics.of_rows(rows(9, 4))}, ORIGIN)
    tensors, metadata = read_safetensors(path)
    damaged(value)(tensors)
    write_safetensors(path, tensors, metadata)
    with pytest.raises(MixshowError, match=f"'layer' holds .*{message}.*record it again"):
        open_statistics(path).check_numbers()


def test_an_indefinite_moment_with_positive_squares_is_refused(tmp_path: Path) -> None:
    moment = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64)
    write_statistics(tmp_path / "a.stats.safetensors", {"layer": LayerStatistics(moment, 5)}, ORIGIN)
    with pytest.raises(MixshowError, match="negative eigenvalues"):
        open_statistics(tmp_path / "a.stats.safetensors").check_numbers()


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.stats.safetensors"
    write_statistics(path, {"layer": LayerStatistics.of_rows(rows(9, 4))}, ORIGIN)
    tensors, metadata = read_safetensors(path)
    about = json.loads(metadata["mixshow"])
    write_safetensors(path, tensors, {"mixshow": json.dumps({**about, "version": 99})})
    with pytest.raises(MixshowError, match="version 1, found version 99"):
        open_statistics(path)
    del about["layers"]
    write_safetensors(path, tensors, {"mixshow": json.dumps(about)})
    with pytest.raises(MixshowError, match="metadata is damaged"):
        open_statistics(path)
    write_safetensors(path, tensors)
    with pytest.raises(MixshowError, match="found another safetensors file"):
        open_statistics(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(MixshowError, match="half a file"):
        open_statistics(path)
    with pytest.raises(MixshowError, match="no such file; `mixshow statistics` writes one"):
        open_statistics(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": "x"}, "another base"),
        ({"concept": "x"}, "trained anew since"),
        ({"concept": "x", "tokens": ("<b>",)}, "of the concept <b>, not of <a>"),
        ({"concept": None}, "of the base on ordinary captions, not of <a>"),
        ({"text_prompts": ("x",)}, "text_prompts"),
        ({"steps": 7}, "steps 7, not 1"),
        ({"seed": 3}, "seed 3, not 0"),
        ({"width": 128}, "width 128, not 64"),
        ({"unet": 0.5}, "strength on the UNet 0.5, not 1.0"),
    ],
)
def test_other_origins_are_told_apart(change: dict[str, object], words: str) -> None:
    other = dataclasses.replace(ORIGIN, **change)  # type: ignore[arg-type]
    [said] = other.differences(ORIGIN)
    assert words in said and other.key() != ORIGIN.key()


def test_names_do_not_tell_origins_apart() -> None:
    renamed = dataclasses.replace(ORIGIN, tokens=("<other>",), base_source="elsewhere")
    assert not renamed.differences(ORIGIN) and renamed.key() == ORIGIN.key()


def test_the_base_is_told_by_its_weights(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> None:
    same = tiny_base(tmp_path_factory.mktemp("same"))
    assert weights_hash(same) == weights_hash(tiny)
    weight = same.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.weight
    weight.data[-1, -2] += 1e-3
    assert weights_hash(same) != weights_hash(tiny)
    weight.data[-1, -2] -= 1e-3
    same.scheduler_config = {**same.scheduler_config, "prediction_type": "v_prediction"}
    assert weights_hash(same) != weights_hash(tiny)


def test_concepts_are_told_by_their_tensors(tiny: Base) -> None:
    first, same, other = tiny_concept(tiny, "duck"), tiny_concept(tiny, "fox"), tiny_concept(tiny, "duck", seed=1)
    assert concept_hash(first) == concept_hash(same) != concept_hash(other)
    swapped = Concept(dict(reversed(first.embeddings.items())), first.network)
    assert concept_hash(swapped) != concept_hash(first)


def test_kinds_cover_all_that_can_be_fused(each_base: Base) -> None:
    kinds = kinds_of(each_base)
    left = [layer.path for layer in layers_of(each_base).values() if layer.path not in kinds]
    assert all("embedding" in path for path in left) and left
    assert set(kinds.values()) == set(KINDS)
    concept = Member(tiny_concept(each_base, "duck"))
    assert [layer.path for layer in covered_layers(each_base, concept, ["own"])] == [
        layer.path for layer in covered_layers(each_base, None, DEFAULT)
    ]


def test_all_layers_are_recorded_and_read_back(tiny: Base, tmp_path: Path) -> None:
    """Wide inputs as rows; without the constant input where a fusion does not want it."""
    member, path = Member(tiny_concept(tiny, "duck")), tmp_path / "duck.stats.safetensors"
    collection = dataclasses.replace(SMALL, moment_width=100)
    layers = covered_layers(tiny, member, ["all"], biases=True)
    found = record_all(tiny, member, layers, collection)
    assert set(found) == {layer.path for layer in layers}
    assert {each.shape[-1] > 100 for each in found.values() if isinstance(each, KeptRows)} == {True}
    moments = {id(each): each for each in found.values()}.values()
    needed = sum(4 * each.kept.numel() if isinstance(each, KeptRows) else 8 * each.moment.numel() for each in moments)
    assert needed <= recording_bytes(layers, collection) <= 3 * needed
    write_statistics(path, found, Origins(tiny, collection, []).of(member), {x.path for x in layers if x.extended})
    plain = covered_layers(tiny, member, ["all"])
    stored, extended = inputs_for(tiny, open_statistics(path), plain), 0
    for layer in plain:
        cut = found[layer.path].moment[..., :-1, :-1] if layer.path in open_statistics(path).extended else None
        extended += cut is not None
        expected = found[layer.path].moment if cut is None else cut
        torch.testing.assert_close(stored[layer.path].moment, expected, rtol=1e-6, atol=1e-6)
    assert extended > 10
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1."
    assert stored[f"{attention}to_q"] is stored[f"{attention}to_v"] is not stored[f"{attention}to_out.0"]


def test_missing_layers_and_biases_are_named_with_what_to_do(tiny: Base, tmp_path: Path) -> None:
    member, path = Member(tiny_concept(tiny, "duck")), tmp_path / "duck.stats.safetensors"
    layers = covered_layers(tiny, member, ["keys_values"])
    write_statistics(path, record_all(tiny, member, layers, SMALL), ORIGIN)
    wanted = covered_layers(tiny, member, [*DEFAULT, "feed_forward"])
    words = rf"lacks {len(wanted) - 32} of the {len(wanted)} .*layers=\[own,text_attention,attention,feed_forward\]"
    with pytest.raises(MixshowError, match=words):
        inputs_for(tiny, open_statistics(path), wanted)
    wanted = [dataclasses.replace(layer, extended=True) for layer in layers]
    with pytest.raises(MixshowError, match=r"without the constant input of 32 biases .*biases=true"):
        inputs_for(tiny, open_statistics(path), wanted)
