"""Bases written as single files: diffusers' own reader and this program get the very tensors back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_safetensors
from mixshow.edlora.embedding import ConceptEmbedding
from mixshow.models import Base, load_base, save_base
from mixshow.models.checkpoint_write import single_file_problem
from mixshow.models.clip_tokenizer import clip_tokenizer
from mixshow.models.embedding_table import with_concept_tokens
from mixshow.sampling.generate import sample
from tests.lycoris.bases import base_shape
from tests.models.checkpoints import published_shape
from tests.tiny import KINDS


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest) -> Base:
    return published_shape(request.param)


def parts(base: Any) -> dict[str, dict[str, Tensor]]:
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {name: getattr(base, name).state_dict() for name in names if getattr(base, name, None) is not None}


def assert_same(found: Any, expected: Any, dtype: torch.dtype = torch.float32) -> None:
    found, expected = parts(found), parts(expected)
    assert found.keys() == expected.keys()
    for name, tensors in expected.items():
        assert found[name].keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(found[name][key].float(), tensor.to(dtype).float()), f"{name}: {key}"


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_file_is_the_base_to_the_last_bit(base: Base, tmp_path: Path, dtype: torch.dtype | None) -> None:
    save_base(base, tmp_path / "model.safetensors", dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    again = load_base(tmp_path / "model.safetensors")
    assert_same(again, base, dtype or torch.float32)
    assert again.topology == base.topology
    assert again.scheduler_config == base.scheduler_config
    assert again.zero_empty_prompt == base.zero_empty_prompt and not again.vocabulary.tokens
    tensors, _ = read_safetensors(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype or torch.float32}


def test_diffusers_reads_the_very_tensors(base: Base, tmp_path: Path) -> None:
    save_base(base, tmp_path / "folder")
    save_base(base, tmp_path / "model.safetensors")
    kind = StableDiffusionPipeline if base.text_encoder_2 is None else StableDiffusionXLPipeline
    pipeline = kind.from_single_file(
        str(tmp_path / "model.safetensors"), config=str(tmp_path / "folder"), local_files_only=True
    )
    assert_same(pipeline, base)


def with_tokens(base: Base) -> Any:
    generator = torch.Generator().manual_seed(3)
    shape = base.topology.layers, base.topology.text_width
    return with_concept_tokens(base, {token: torch.randn(shape, generator=generator) for token in ("<b>", "<a>")})


def test_concept_tokens_go_along(base: Base, tmp_path: Path) -> None:
    known, attachment = with_tokens(base)
    with attachment:
        save_base(known, tmp_path / "model.safetensors")
        again = load_base(tmp_path / "model.safetensors")
        assert_same(again, known)
        assert again.vocabulary == known.vocabulary and again.topology == known.topology
        pictures = [
            sample(each, ["a <b> cat"], seeds=[1], steps=1, width=64, height=64)[0].tobytes() for each in (known, again)
        ]
    assert pictures[0] == pictures[1]
    plain = read_safetensors(tmp_path / "model.safetensors")[0]
    save_base(base, tmp_path / "plain.safetensors")
    for name, tensor in read_safetensors(tmp_path / "plain.safetensors")[0].items():
        assert torch.equal(plain[name], tensor)  # other programs find CLIP's vocabulary


@pytest.mark.parametrize("kind", KINDS)
def test_published_sizes_can_be_files(kind: str) -> None:
    assert single_file_problem(of_published_size(kind)) is None


PUBLISHED_NAMES = {
    "sd1": [
        "model.diffusion_model.output_blocks.2.1.conv.weight",
        "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "first_stage_model.decoder.up.3.upsample.conv.weight",
        "first_stage_model.encoder.mid.attn_1.proj_out.weight",
        "first_stage_model.post_quant_conv.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight",
    ],
    "sd2": [
        "cond_stage_model.model.positional_embedding",
        "cond_stage_model.model.transformer.resblocks.2.attn.in_proj_weight",
        "cond_stage_model.model.ln_final.bias",
    ],
    "xl": [
        "model.diffusion_model.label_emb.0.2.weight",
        "model.diffusion_model.output_blocks.2.2.conv.weight",
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
        "conditioner.embedders.1.model.transformer.resblocks.1.mlp.c_proj.bias",
        "conditioner.embedders.1.model.text_projection",
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_those_of_published_files(kind: str, tmp_path: Path) -> None:
    save_base(published_shape(kind), tmp_path / "m.safetensors")
    assert set(PUBLISHED_NAMES[kind]) <= read_safetensors(tmp_path / "m.safetensors")[0].keys()


def of_published_size(kind: str) -> Base:
    """A base without weights; the autoencoder, which is tiny, is another matter."""
    small, models = published_shape(kind), base_shape(kind)
    for name in small.text_encoders:
        encoder = models[name]
        with torch.device("meta"):
            encoder.set_input_embeddings(nn.Embedding(49408, encoder.config.hidden_size))
        encoder.config.vocab_size = 49408
        encoder.config.hidden_act = small.text_encoders[name].config.hidden_act
    long = {"text_encoder": kind == "sd2", "text_encoder_2": True}
    tokenizers = {
        name.replace("text_encoder", "tokenizer"): clip_tokenizer(length=77, pad_with_zero=long[name])
        for name in small.text_encoders
    }
    return dataclasses.replace(small, **models, **tokenizers)


def test_other_tokenizers_need_a_folder(tiny: Base, tmp_path: Path) -> None:
    with pytest.raises(MixshowError, match=r"hold no tokenizer, and this base's is not CLIP's .*; write a folder") as e:
        save_base(tiny, tmp_path / "model.safetensors")
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


def _heads(base: Base) -> None:
    base.unet.register_to_config(attention_head_dim=4)


def _groups(base: Base) -> None:
    base.vae.register_to_config(norm_num_groups=16)


def _scale(base: Base) -> None:
    base.vae.register_to_config(scaling_factor=0.5)


def _text(base: Base) -> None:
    base.text_encoder.config.num_attention_heads = 2


def _tensor(base: Base) -> None:
    base.vae.encoder.conv_in.extra = nn.Parameter(torch.zeros(1))


def _module(base: Base) -> None:
    base.unet.adapter = nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_heads, "cannot say that the unet's attention_head_dim is 4 instead of 8"),
        (_groups, "cannot say that the vae's norm_num_groups is 16 instead of 32"),
        (_scale, "cannot say that the vae's scaling_factor is 0.5 instead of 0.18215"),
        (_text, "cannot say that the text_encoder's num_attention_heads is 2 instead of 1"),
        (_tensor, "cannot say that the vae's tensors are as they are .'encoder.conv_in.extra'"),
        (_module, "its UNet has a module 'adapter'"),
    ],
)
def test_what_a_file_cannot_say_is_one_line(change: Any, message: str, tmp_path: Path) -> None:
    base = published_shape("sd1")
    change(base)
    with pytest.raises(MixshowError, match=message) as error:
        save_base(base, tmp_path / "m.safetensors")
    assert "\n" not in str(error.value) and "write a folder instead" in str(error.value)


def test_attached_concepts_have_no_rows_to_write(tmp_path: Path) -> None:
    base = published_shape("sd1")
    shape = base.topology.layers, base.topology.text_width
    known, attachment = ConceptEmbedding({"<a>": torch.zeros(shape)}).attach(base)
    with attachment, pytest.raises(MixshowError, match="take the concepts off, or fuse them"):
        save_base(known, tmp_path / "m.safetensors")


def test_velocities_are_marked_for_other_programs(tmp_path: Path) -> None:
    base = published_shape("sd1")
    schedule = {**base.scheduler_config, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    save_base(dataclasses.replace(base, scheduler_config=schedule), tmp_path / "m.safetensors")
    tensors, metadata = read_safetensors(tmp_path / "m.safetensors")
    assert {"v_pred", "ztsnr"} <= tensors.keys() and metadata["modelspec.prediction_type"] == "v"
    assert load_base(tmp_path / "m.safetensors").scheduler_config == schedule


def test_files_of_later_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixshow.models.checkpoint_write.BASE_VERSION", 2)
    save_base(published_shape("sd1"), tmp_path / "m.safetensors")
    with pytest.raises(MixshowError, match="version 1 or older, found 2; update mixshow"):
        load_base(tmp_path / "m.safetensors")
