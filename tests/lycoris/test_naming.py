"""Every name that programs give to a module finds it, and every module is written under one name."""

from __future__ import annotations

import pytest
from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.naming import NameIndex, canonical_path, file_name, modules_by_file_name
from mixshow.lycoris.presets import select_targets
from tests.lycoris.bases import base_shape

# diffusers' name -> SGM's.
SD1 = {
    "conv_in": "input_blocks_0_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "down_blocks_0_resnets_0_conv1": "input_blocks_1_0_in_layers_2",
    "down_blocks_1_attentions_1_proj_in": "input_blocks_5_1_proj_in",
    "down_blocks_2_downsamplers_0_conv": "input_blocks_9_0_op",
    "down_blocks_3_resnets_1_time_emb_proj": "input_blocks_11_0_emb_layers_1",
    "mid_block_resnets_1_norm2": "middle_block_2_out_layers_0",
    "up_blocks_1_resnets_2_conv_shortcut": "output_blocks_5_0_skip_connection",
    "up_blocks_2_upsamplers_0_conv": "output_blocks_8_2_conv",
    "up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0": (
        "output_blocks_11_1_transformer_blocks_0_attn2_to_out_0"
    ),
}
XL = {
    "down_blocks_0_downsamplers_0_conv": "input_blocks_3_0_op",
    "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "mid_block_attentions_0_proj_out": "middle_block_1_proj_out",
    "up_blocks_0_upsamplers_0_conv": "output_blocks_2_2_conv",
    "add_embedding_linear_2": "label_emb_0_2",
}


@pytest.mark.parametrize(
    ("base", "ours", "theirs"),
    [("sd1", *pair) for pair in SD1.items()] + [("xl", *pair) for pair in XL.items()],
)
def test_diffusers_and_sgm_names(base: str, ours: str, theirs: str) -> None:
    index = NameIndex({"unet": base_shape(base)["unet"]})
    assert index.find(f"lora_unet_{ours}") == index.find(f"lora_unet_{theirs}") == f"lora_unet_{ours}"
    assert index.sgm(f"lora_unet_{ours}") == f"lora_unet_{theirs}"


@pytest.mark.parametrize("base", ["sd1", "sd2", "xl"])
def test_every_selected_module_has_an_sgm_name_of_its_own(base: str) -> None:
    index = NameIndex(base_shape(base))
    found = [target.file_name for target in select_targets(base_shape(base), "unet-only", train_norm=True)]
    theirs = [index.sgm(name) for name in found]
    assert len(set(theirs)) == len(found) and not set(theirs) & set(found)
    assert [index.find(name) for name in theirs] == found


def test_upsamplers_of_blocks_without_attention_have_two_places() -> None:
    index = NameIndex(base_shape("sd1"))
    expected = "lora_unet_up_blocks_0_upsamplers_0_conv"
    assert index.find("lora_unet_output_blocks_2_1_conv") == index.find("lora_unet_output_blocks_2_2_conv") == expected


def test_text_encoders() -> None:
    layer = "encoder_layers_0_mlp_fc1"
    one = NameIndex({"text_encoder": base_shape("sd1")["text_encoder"]})
    for name in (
        f"lora_te_text_model_{layer}",
        f"lora_te_{layer}",
        f"lora_te1_text_model_{layer}",
        f"lora_te1_{layer}",
    ):
        assert one.find(name) == f"lora_te_text_model_{layer}"
    two = NameIndex(base_shape("xl"))
    for number in (1, 2):
        assert two.find(f"lora_te{number}_{layer}") == f"lora_te{number}_text_model_{layer}"
    assert two.find(f"lora_te_text_model_{layer}") is None
    assert two.find("lora_te2_text_projection") == "lora_te2_text_projection"


def test_names_do_not_depend_on_the_library() -> None:
    """Older versions of transformers kept the text model one step further down."""
    new = base_shape("sd1")["text_encoder"]
    old = nn.ModuleDict({"text_model": new})
    assert list(modules_by_file_name({"text_encoder": new})) == list(modules_by_file_name({"text_encoder": old}))
    assert canonical_path("text_encoder_2", "text_projection") == "text_projection"
    assert canonical_path("unet", "encoder.x") == "encoder.x"


def test_prefixes_of_other_programs() -> None:
    index = NameIndex(base_shape("xl"))
    assert index.find("oft_unet_input_blocks_4_1_proj_in") == "lora_unet_down_blocks_1_attentions_0_proj_in"
    assert index.find("lycoris_conv_in") == "lora_unet_conv_in"
    assert index.find("lycoris_text_model_encoder_layers_0_mlp_fc1") is None  # of which of the two?
    assert index.find("lycoris_text_model_encoder_layers_31_mlp_fc1") == "lora_te2_text_model_encoder_layers_31_mlp_fc1"
    assert index.find("oft_te1_text_model_encoder_layers_0_mlp_fc1") is None


def test_any_model() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2)})})
    assert list(modules_by_file_name({"model": model})) == ["lycoris_a_b"]
    assert list(modules_by_file_name({"vae": model})) == [file_name("vae", "a.b")] == ["lora_vae_a_b"]
    with pytest.raises(MixshowError, match=r"'lycoris_a_b' with _ for \. cannot be told apart"):
        modules_by_file_name({"model": nn.ModuleDict({**model, "a_b": nn.Linear(2, 2)})})
