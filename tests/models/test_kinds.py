"""Stable Diffusion 1.x, 2.x and XL: the same things work on all, and diffusers' own pipelines agree."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest
import torch

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_json, read_safetensors, write_json
from mixshow.edlora.concept import attach_concepts, load_concept, save_concept
from mixshow.lycoris import create_network, load_network
from mixshow.models import Base, encode_prompts, load_base, make_scheduler, prompt_states, save_base
from mixshow.models.schedule import as_noise
from mixshow.recipes.lycoris import match
from mixshow.sampling.denoise import denoise
from mixshow.sampling.generate import sample, start_noise
from tests.tiny import tiny_concept

STEPS, GUIDANCE = 3, 3.0


def latents_of(base: Base, prompt: str, negative: str = "") -> torch.Tensor:
    """Latents of one picture; fast."""
    scheduler = make_scheduler(base, "DDIM")
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        states = [prompt_states(base, [text]) for text in (prompt, negative)]
    return denoise(base, scheduler, start_noise(base, [3], 8, 16), *states, guidance=GUIDANCE)


def folder_of(base: Base, tmp_path: Path) -> Path:
    save_base(base, tmp_path / "saved")
    return tmp_path / "saved"


def test_described(each_base: Base) -> None:
    topology, widths = each_base.topology, each_base.text_widths
    kind = {(16,): "sd", (16, 24): "xl"}[widths]
    assert topology.text_width == sum(widths) == each_base.unet.config.cross_attention_dim
    assert (topology.layers, topology.size_multiple) == {"sd": (16, 64), "xl": (17, 32)}[kind]
    assert list(each_base.models) == [*each_base.tokenizers, "unet"] == [*each_base.text_encoders, "unet"]


@pytest.mark.parametrize("negative", ["", "red hat"])
def test_pictures_are_those_of_diffusers(each_base: Base, negative: str, tmp_path: Path) -> None:
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder_of(each_base, tmp_path))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    expected = pipeline(
        "a red dog", negative_prompt=negative or None, height=64, width=128, num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, latents=start_noise(each_base, [3], 8, 16), output_type="latent",
    ).images  # fmt: skip
    torch.testing.assert_close(latents_of(each_base, "a red dog", negative), expected, rtol=1e-4, atol=1e-4)


def test_saved_and_loaded_is_the_same(each_base: Base, tmp_path: Path) -> None:
    loaded = load_base(folder_of(each_base, tmp_path))
    assert torch.equal(latents_of(loaded, "a boy"), latents_of(each_base, "a boy"))
    assert loaded.prediction_type == each_base.prediction_type
    assert loaded.topology.fingerprint() == each_base.topology.fingerprint()
    assert not any(parameter.requires_grad for model in loaded.models.values() for parameter in model.parameters())


def test_networks(each_base: Base, tmp_path: Path) -> None:
    network = create_network(each_base.models, algo="lokr", preset="attn-mlp", dim=2, factor=2)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    network.save(tmp_path / "n.safetensors")
    before = latents_of(each_base, "a boy")
    with network:
        changed = latents_of(each_base, "a boy")
    assert not torch.allclose(changed, before, atol=1e-3)
    loaded = load_network(each_base.models, tmp_path / "n.safetensors")
    loaded.merge()
    try:
        torch.testing.assert_close(latents_of(each_base, "a boy"), changed, rtol=1e-3, atol=1e-3)
    finally:
        loaded.unmerge()
    assert torch.equal(latents_of(each_base, "a boy"), before)
    prefixes = {name.partition("_text_model")[0].partition("_down_")[0] for name in network.adapters}
    text = {"lora_te"} if len(each_base.text_widths) == 1 else {"lora_te1", "lora_te2"}
    assert {prefix for prefix in prefixes if prefix.startswith("lora_te")} == text


def test_match_reads_the_configurations(each_base: Base, tmp_path: Path) -> None:
    rows = match(folder_of(each_base, tmp_path), preset="attn-only")
    assert all(f"| {model} " in rows for model in each_base.models)


def test_concepts(each_base: Base, tmp_path: Path) -> None:
    """Every text encoder and every layer gets its own vectors, from a file too."""
    concept = tiny_concept(each_base, "pip")
    save_concept(concept, tmp_path / "pip.safetensors")
    tensors, _ = read_safetensors(tmp_path / "pip.safetensors")
    widths = [
        tensors[f"mixshow.embedding.{name}.<pip1>"].shape[1]
        for name in each_base.text_encoders
    ]  # fmt: skip
    assert tuple(widths) == each_base.text_widths
    loaded = load_concept(tmp_path / "pip.safetensors")
    assert all(torch.equal(loaded.embeddings[token], concept.embeddings[token]) for token in concept.embeddings)

    before = latents_of(each_base, "a boy")
    known, attachment = attach_concepts(each_base, [loaded])
    with attachment, torch.no_grad():
        own = loaded.embeddings["<pip2>"].split(each_base.text_widths, dim=1)
        for encoder, vectors in zip(known.text_encoders.values(), own, strict=True):
            for layer in (0, 7, 13):
                ids = torch.tensor([known.vocabulary.ids["<pip2>"][layer]])
                assert torch.equal(encoder.get_input_embeddings()(ids)[0], vectors[layer])
        states = encode_prompts(known, ["a <pip1> <pip2>"])[0]
        for part in states.split(each_base.text_widths, dim=-1):
            assert not torch.equal(part[0], part[1])
        assert not torch.allclose(latents_of(known, "a <pip1> <pip2>"), before, atol=1e-3)
    assert torch.equal(latents_of(each_base, "a boy"), before)


def test_the_pooled_state_is_that_of_the_end_token(tmp_path: Path, xl: Base) -> None:
    """Published configurations name a wrong end token; concept tokens, of larger ids, must not stand in for it."""
    folder = folder_of(xl, tmp_path)
    config = read_json(folder / "text_encoder_2" / "config.json")
    write_json(folder / "text_encoder_2" / "config.json", {**config, "eos_token_id": 2})
    loaded = load_base(folder)
    known, attachment = attach_concepts(loaded, [tiny_concept(xl, "pip", strength=0)])
    with attachment, torch.no_grad():
        first = prompt_states(known, ["<pip1> <pip2> dog"]).pooled
        second = prompt_states(known, ["<pip1> <pip2> hat"]).pooled
    assert first is not None and not torch.allclose(first, second)
    assert torch.equal(latents_of(loaded, "a dog"), latents_of(xl, "a dog"))


def test_pictures_of_concepts_together(each_base: Base) -> None:
    """A picture depends on its own prompt, in a batch of others too."""
    together = sample(each_base, ["a dog", "a red boy"], seeds=[1, 2], steps=2, width=64, height=64)
    alone = sample(each_base, ["a red boy"], seeds=[2], steps=2, width=64, height=64)[0]
    pairs = zip(together[1].tobytes(), alone.tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1


def test_velocities_say_what_noise_is(sd2: Base, tiny: Base) -> None:
    schedule = make_scheduler(sd2, "DDPM")
    clean, noise = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([20, 900])
    noisy, velocity = schedule.add_noise(clean, noise, times), schedule.get_velocity(clean, noise, times)
    torch.testing.assert_close(as_noise(sd2, velocity, noisy, times), noise, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(as_noise(sd2, velocity[1:], noisy[1:], times[1]), noise[1:], rtol=1e-4, atol=1e-4)
    assert as_noise(tiny, velocity, noisy, times) is velocity


def changed_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"in_channels": 9}, "reads 9 channels and predicts 4 .inpainting"),
        ("unet/config.json", {"class_embed_type": "projection"}, "class_embed_type projection"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "epsilon or v_prediction, found 'sample'"),
        ("model_index.json", {"text_encoder": [None, None]}, "a refiner"),
    ],
)
def test_other_kinds_are_one_line(xl: Base, tmp_path: Path, file: str, values: dict, message: str) -> None:
    folder = folder_of(xl, tmp_path)
    changed_json(folder / file, **values)
    with pytest.raises(MixshowError, match=message) as error:
        load_base(folder)
    assert "\n" not in str(error.value)
