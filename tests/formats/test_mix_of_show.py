"""Mix-of-Show's concept files."""

from __future__ import annotations

import pytest
import torch

from mixshow.core.errors import MixshowError
from mixshow.edlora.concept import save_concept
from mixshow.formats import read_concept, read_mix_of_show, write_mix_of_show
from mixshow.lycoris import load_network
from tests.tiny import tiny_concept


def test_round_trip_keeps_embeddings_and_changes(tiny, tmp_path):
    concept = tiny_concept(tiny, "pip")
    scaled = {k: v / 2 if k.endswith("alpha") else v for k, v in concept.network.items()}
    write_mix_of_show(type(concept)(concept.embeddings, scaled), tmp_path / "pip.pth", tiny.models)
    found = read_concept(tmp_path / "pip.pth")
    assert found.text == concept.text
    for token, vectors in concept.embeddings.items():
        assert torch.equal(vectors, found.embeddings[token])
    before, after = (dict(load_network(tiny.models, n).deltas()) for n in (scaled, found.network))
    assert before.keys() == after.keys()
    for name, delta in before.items():
        torch.testing.assert_close(after[name], delta)


def test_published_alpha_multiplies_the_change_and_is_not_divided_by_the_rank(tiny, tmp_path):
    concept = tiny_concept(tiny, "pip", rank=2)
    write_mix_of_show(concept, tmp_path / "pip.pth", tiny.models)
    whole, part = read_concept(tmp_path / "pip.pth"), read_mix_of_show(tmp_path / "pip.pth", unet_alpha=0.6)
    for name, delta in load_network(tiny.models, whole.network).deltas():
        other = dict(load_network(tiny.models, part.network).deltas())[name]
        torch.testing.assert_close(other, delta * (0.6 if name.startswith("lora_unet") else 1.0))
        break


def test_reads_the_published_file(shared_fixtures):
    concept = read_concept(shared_fixtures / "published_reference" / "concepts" / "duck.pth")
    assert concept.text == "<duck1> <duck2>"
    assert concept.embeddings["<duck1>"].shape == (16, 32)
    assert all(not key.startswith("lora_te_encoder") for key in concept.network)


def test_formats_are_told_by_contents_not_by_names(tiny, tmp_path):
    save_concept(tiny_concept(tiny, "pip"), tmp_path / "ours.pth")
    assert read_concept(tmp_path / "ours.pth").text == "<pip1> <pip2>"


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the pickle ran')",))


GOOD = {"<a>": torch.zeros(16, 8)}


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (Hostile(), "unsafe"),
        ({"params": {"unet": {}}}, "new_concept_embedding"),
        ({"new_concept_embedding": {}}, "no concept tokens"),
        ({"new_concept_embedding": {"a": torch.zeros(16, 8)}}, "expected concept tokens like"),
        ({"new_concept_embedding": {"<a>": torch.zeros(8)}}, "layers x width"),
        ({"new_concept_embedding": {"<a>": torch.full((16, 8), float("nan"))}}, "no numbers"),
        ({"new_concept_embedding": GOOD, "unet": {"x.weight": torch.zeros(2, 2)}}, "low-rank factor"),
        ({"new_concept_embedding": GOOD, "unet": {"x.lora_up.weight": torch.zeros(2, 2)}}, "incomplete"),
        ({"new_concept_embedding": GOOD, "unet": [1]}, "expected tensors by name"),
        ([1, 2], "new_concept_embedding"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_hostile_and_odd_files_are_one_line(contents, expected, tmp_path):
    torch.save(contents, tmp_path / "odd.pth")
    with pytest.raises(MixshowError, match=expected) as caught:
        read_concept(tmp_path / "odd.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("length", [0, 1, 7, 40, 2000])
def test_truncated_files_are_one_line(tiny, tmp_path, suffix, length):
    concept, path = tiny_concept(tiny, "pip"), tmp_path / f"pip{suffix}"
    if suffix == ".pth":
        write_mix_of_show(concept, path, tiny.models)
    else:
        save_concept(concept, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(MixshowError):
        read_concept(path)


def test_what_the_format_cannot_hold_is_refused(tiny, tmp_path):
    concept = tiny_concept(tiny, "pip")
    other = type(concept)(
        concept.embeddings, {**concept.network, "lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2)}
    )
    with pytest.raises(MixshowError, match="cannot be written"):
        write_mix_of_show(other, tmp_path / "pip.pth", tiny.models)
    assert not (tmp_path / "pip.pth").exists()
