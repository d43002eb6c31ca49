"""One training step against the published implementation."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from mixshow.edlora.attention_maps import concept_positions
from mixshow.edlora.embedding import ConceptEmbedding
from mixshow.edlora.layerwise import layerwise_states
from mixshow.edlora.step import LossOptions, StepInputs, training_loss
from mixshow.formats import read_concept
from mixshow.lycoris import load_network
from mixshow.lycoris.naming import file_name
from mixshow.models import load_base, make_scheduler, prompt_states

SETTINGS = {
    "mask": LossOptions(masked=True),
    "reg": LossOptions(masked=True, attention_weight=0.01),
    "regfull": LossOptions(masked=False, attention_weight=0.01, attention_identity=True),
}
PROMPTS = ["photo of a <duck1> <duck2>, smiling", "<duck1> <duck2>, in the rain"]


@pytest.fixture(scope="module")
def reference(shared_fixtures):
    folder = shared_fixtures / "published_reference"
    return (
        load_base(folder / "base"),
        read_concept(folder / "concepts" / "duck.pth"),
        load_file(folder / "trainer_golden.safetensors"),
    )


@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_and_gradients_are_the_published_ones(reference, setting):
    base, concept, golden = reference
    embedding = ConceptEmbedding(concept.embeddings)
    network = load_network(base.models, concept.network)
    subject, image = torch.zeros(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)
    subject[:, :, 12:48, 16:52] = 1
    image[:, :, 0:56] = 1
    known, attachment = embedding.attach(base)
    with attachment, network, layerwise_states(base.unet):
        states = prompt_states(known, PROMPTS)
        positions = concept_positions(known, PROMPTS, list(concept.embeddings))
        inputs = StepInputs(
            golden["latents"], golden["noise"], torch.tensor([77, 633]), states, image, subject, positions
        )
        loss = training_loss(base.unet, make_scheduler(base, "DDPM"), inputs, SETTINGS[setting])
        loss.backward()
    assert loss.item() == pytest.approx(golden[f"{setting}.loss"].item(), rel=1e-4)
    compared = 0
    for key, expected in golden.items():
        if not key.startswith(f"{setting}.grad."):
            continue
        where = key.removeprefix(f"{setting}.grad.")
        if where == "emb":
            found = embedding.vectors.grad.flatten(0, 1)
        else:
            path, _, factor = where.rpartition(".")
            model = "text_encoder" if path.startswith("text_model") else "unet"
            found = getattr(network.adapters[file_name(model, path)], factor).grad
        assert (found - expected).norm() <= 1e-3 * expected.norm(), key
        compared += 1
    assert compared == 11
