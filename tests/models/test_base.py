"""Bases: asked, loaded, saved; prompts become one set of states per cross-attention layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mixshow.core.errors import MixshowError
from mixshow.edlora.concept import attach_concepts, load_concept, save_concept
from mixshow.edlora.layerwise import layerwise_states
from mixshow.models import ConceptVocabulary, encode_prompts, load_base, make_scheduler, save_base
from mixshow.models.base import Base
from tests.tiny import tiny_base, tiny_concept


def noise_prediction(base: Base, prompt: str) -> torch.Tensor:
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), layerwise_states(base.unet):
        return base.unet(x, torch.tensor(300), encoder_hidden_states=encode_prompts(base, [prompt])).sample


def test_cross_attention_layers_are_in_forward_order(tiny: Base) -> None:
    parts = [name.split(".")[0] for name in tiny.topology.cross_attention]
    assert parts == ["down_blocks"] * 6 + ["mid_block"] + ["up_blocks"] * 9


def test_topology_is_asked_of_the_model(tiny: Base) -> None:
    topology = tiny.topology
    assert (topology.text_width, topology.max_tokens, topology.latent_channels) == (16, 24, 4)
    assert (topology.latent_factor, topology.size_multiple, topology.layers) == (8, 64, 16)


def test_saved_and_loaded_base_is_the_same(tiny: Base, tiny_folder: Path) -> None:
    loaded = load_base(tiny_folder)
    assert torch.equal(noise_prediction(loaded, "a photo of a boy"), noise_prediction(tiny, "a photo of a boy"))
    assert not any(parameter.requires_grad for parameter in loaded.unet.parameters())


def test_concepts_attach_and_come_off(tiny: Base) -> None:
    concepts = [tiny_concept(tiny, "pip", seed=1), tiny_concept(tiny, "luma", seed=2)]
    before, keys = noise_prediction(tiny, "a toy"), list(tiny.unet.state_dict()) + list(tiny.text_encoder.state_dict())
    base, handle = attach_concepts(tiny, concepts)
    with handle:
        states = encode_prompts(base, ["a <pip1> <pip2> and <luma1> <luma2>", "a toy"])
        assert states.shape == (2, 16, 24, 16)
        assert not torch.equal(states[0, 0], states[0, 1])
        assert torch.equal(states[1, 0], states[1, 1])
        assert not torch.equal(noise_prediction(base, "a toy"), before)
    assert torch.equal(noise_prediction(tiny, "a toy"), before)
    assert keys == list(tiny.unet.state_dict()) + list(tiny.text_encoder.state_dict())
    assert not tiny.vocabulary.tokens


def test_each_layer_reads_its_own_vectors(tiny: Base) -> None:
    concept = tiny_concept(tiny, "pip", strength=0.0)
    base, handle = attach_concepts(tiny, [concept])
    with handle, torch.no_grad():
        table = base.text_encoder.get_input_embeddings()
        for layer in (0, 7, 15):
            ids = torch.tensor([base.vocabulary.ids["<pip2>"][layer]])
            assert torch.equal(table(ids)[0], concept.embeddings["<pip2>"][layer])


def test_tokens_that_collide_are_refused_and_nothing_stays_attached(tiny: Base) -> None:
    with pytest.raises(MixshowError, match="<pip1> is used twice"):
        attach_concepts(tiny, [tiny_concept(tiny, "pip"), tiny_concept(tiny, "pip")])
    models = (tiny.unet, tiny.text_encoder)
    assert not any(m._forward_hooks or m._forward_pre_hooks for model in models for m in model.modules())


def test_a_concept_of_another_base_is_refused(tiny: Base, tmp_path: Path) -> None:
    other = tiny_base(tmp_path, width=24)
    with pytest.raises(MixshowError, match="trained on another base"):
        attach_concepts(tiny, [tiny_concept(other, "pip")])


def test_concept_files_round_trip(tiny: Base, tmp_path: Path) -> None:
    concept = tiny_concept(tiny, "pip")
    save_concept(concept, tmp_path / "pip.safetensors")
    loaded = load_concept(tmp_path / "pip.safetensors")
    assert loaded.text == "<pip1> <pip2>"
    assert loaded.metadata["topology"] == tiny.topology.fingerprint()
    assert set(loaded.network) == set(concept.network)
    assert all(torch.equal(loaded.embeddings[token], concept.embeddings[token]) for token in concept.embeddings)


def test_published_vocabulary_form() -> None:
    vocabulary = ConceptVocabulary().extended(["<a1>", "<a2>"], layers=3, first_id=100)
    assert vocabulary.extended(["<bo>", "<7>"], 3, 106).concepts == {"a": "<a1> <a2>", "bo": "<bo>", "<7>": "<7>"}
    assert vocabulary.bind("an <a1> <a2>, <b>", 2) == "an <new2> <new5>, <b>"
    assert vocabulary.unknown_in("an <a1> <b>") == ["<b>"]
    config = json.loads(json.dumps(vocabulary.to_config()))
    assert config["<a2>"] == {
        "concept_token_ids": [103, 104, 105],
        "concept_token_names": ["<new3>", "<new4>", "<new5>"],
    }
    assert ConceptVocabulary.from_config(config, "x") == vocabulary


def test_schedulers_by_name(tiny: Base) -> None:
    assert type(make_scheduler(tiny, "DDIM")).__name__ == "DDIMScheduler"
    with pytest.raises(MixshowError, match="did you mean 'EulerDiscreteScheduler'"):
        make_scheduler(tiny, "EulerDiscret")
    with pytest.raises(MixshowError, match="no such option"):
        make_scheduler(tiny, "DDIM", sharpness=2)


@pytest.mark.parametrize("source", ["no_such_base", "./gone", "model.safetensors"])
def test_a_missing_base_is_one_line(source: str) -> None:
    with pytest.raises(MixshowError, match="expected 'puppets', a diffusers folder or a hub id"):
        load_base(source)


def test_an_empty_folder_is_no_base(tmp_path: Path) -> None:
    with pytest.raises(MixshowError, match="cannot be loaded as a diffusers model") as error:
        load_base(tmp_path)
    assert "\n" not in str(error.value)


def test_latents_and_pictures(tiny: Base) -> None:
    images = torch.rand(2, 3, 64, 128) * 2 - 1
    with torch.no_grad():
        latents = tiny.encode_images(images)
        assert latents.shape == (2, 4, 8, 16)
        assert tiny.decode_latents(latents).shape == images.shape


def test_saving_twice_replaces(tiny: Base, tmp_path: Path) -> None:
    save_base(tiny, tmp_path / "m", extra={"fusion_report.json": {"a": 1}})
    save_base(tiny, tmp_path / "m")
    assert not (tmp_path / "m" / "fusion_report.json").exists()
    load_base(tmp_path / "m")
