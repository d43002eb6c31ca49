"""Blocks are counted as sd-scripts counts them, on diffusers' and SGM's names, and set rank, alpha and rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.lycoris.blocks import BlockLayout, block_values, rate_groups, with_block_ranks
from mixshow.lycoris.matching import wide_kernel
from mixshow.lycoris.presets import select_targets
from tests.lycoris.bases import base_shape

SD1 = {
    "conv_in": 0, "down_blocks_0_resnets_0_conv1": 1, "down_blocks_0_attentions_1_proj_in": 2,
    "down_blocks_0_downsamplers_0_conv": 3, "down_blocks_1_attentions_0_proj_in": 4, "down_blocks_2_resnets_1_conv2": 8,
    "down_blocks_2_downsamplers_0_conv": 9, "down_blocks_3_resnets_1_conv1": 11, "mid_block_resnets_0_conv1": 12,
    "mid_block_attentions_0_proj_in": 12, "mid_block_resnets_1_conv2": 12, "up_blocks_0_resnets_0_conv1": 13,
    "up_blocks_0_upsamplers_0_conv": 15, "up_blocks_1_attentions_0_proj_in": 16, "up_blocks_2_upsamplers_0_conv": 21,
    "up_blocks_3_attentions_2_proj_out": 24, "conv_out": None, "time_embedding_linear_1": None,
    "input_blocks_4_1_proj_in": 4, "middle_block_1_proj_in": 12, "output_blocks_11_1_proj_out": 24,
}  # fmt: skip
XL = {
    "time_embedding_linear_2": 0, "add_embedding_linear_1": 0, "conv_in": 1, "down_blocks_0_resnets_0_conv1": 2,
    "input_blocks_8_1_proj_in": 9, "down_blocks_2_attentions_1_proj_in": 9, "mid_block_resnets_0_conv1": 10,
    "mid_block_attentions_0_proj_in": 11, "middle_block_2_in_layers_2": 12, "output_blocks_0_0_in_layers_2": 13,
    "up_blocks_0_upsamplers_0_conv": 15, "up_blocks_2_resnets_2_conv2": 21, "conv_out": 22,
}  # fmt: skip


@pytest.mark.parametrize(("base", "count"), [("sd1", 25), ("sd2", 25), ("xl", 23)])
def test_number_of_blocks(base: str, count: int) -> None:
    layout = BlockLayout.of(base_shape(base))
    assert layout.count == count
    found = {layout.block_of(target.file_name) for target in select_targets(base_shape(base), "full")}
    assert found == {*range(count), None}


@pytest.mark.parametrize(
    ("base", "name", "block"), [("sd1", *pair) for pair in SD1.items()] + [("xl", *pair) for pair in XL.items()]
)
def test_block_of(base: str, name: str, block: int | None) -> None:
    assert BlockLayout.of(base_shape(base)).block_of(f"lora_unet_{name}") == block


@pytest.mark.parametrize(
    ("base", "names"),
    [
        ("sd1", {0: "input_blocks.0", 11: "input_blocks.11", 12: "middle_block", 24: "output_blocks.11"}),
        ("xl", {0: "time_embed", 1: "input_blocks.0", 11: "middle_block.1", 13: "output_blocks.0", 22: "out"}),
    ],
)
def test_names_of_blocks(base: str, names: dict[int, str]) -> None:
    layout = BlockLayout.of(base_shape(base))
    assert {block: layout.name_of(block) for block in names} == names


def test_text_encoders_and_other_models_have_no_blocks() -> None:
    layout = BlockLayout.of(base_shape("sd1"))
    assert layout.block_of("lora_te_text_model_encoder_layers_0_mlp_fc1") is None
    with pytest.raises(MixshowError, match="expected a base with a UNet"):
        BlockLayout.of({"model": nn.Linear(1, 1)})


def test_curves() -> None:
    sine = (0, 0.1423, 0.2817, 0.4154, 0.5406, 0.6549, 0.7557, 0.8413, 0.9096, 0.9595, 0.9898, 1)
    assert block_values("sine", 12) == pytest.approx(sine, abs=5e-5)
    assert block_values("cosine", 12) == pytest.approx(sine[::-1], abs=5e-5)
    assert block_values("sine", 9) == pytest.approx(
        (0, 0.1951, 0.3827, 0.5556, 0.7071, 0.8315, 0.9239, 0.9808, 1), abs=5e-5
    )
    assert block_values("linear", 3) == (0, 0.5, 1) and block_values("reverse_linear", 3) == (1, 0.5, 0)
    assert block_values("zeros+.25", 2) == (0.25, 0.25) and block_values("linear+1", 2) == (1, 2)


def test_lists_of_values() -> None:
    assert block_values("1,,0.5", 3) == (1, 0, 0.5)
    assert block_values("0.5", 3) == block_values(0.5, 3) == (0.5, 0.5, 0.5)
    with pytest.raises(MixshowError, match="block_dims: expected 25 values, one per block, found 24"):
        block_values([1.0] * 24, 25, "block_dims")
    with pytest.raises(MixshowError, match=r"found 'sinus'; did you mean 'sine'\?"):
        block_values("sinus", 12)


def test_weights_of_the_three_parts() -> None:
    layout = BlockLayout.of(base_shape("sd1"))
    weights = layout.weights(down="linear", mid=0.3, up="1,1,1,1,1,1,-1,0.1,0.2,0.3,1,1", threshold=0.2)
    assert len(weights) == 25
    assert weights[:4] == (0, 0, 0, pytest.approx(3 / 11)) and weights[12] == 0.3
    assert weights[13:] == (1, 1, 1, 1, 1, 1, 0, 0, 0, 0.3, 1, 1)
    assert layout.weights() == (1.0,) * 25
    xl = BlockLayout.of(base_shape("xl")).weights(down="zeros", mid="0.1,0.2,0.3")
    assert xl == (1, *[0] * 9, 0.1, 0.2, 0.3, *[1] * 9, 1)


def test_ranks_of_blocks() -> None:
    models = base_shape("sd1")
    layout, targets = BlockLayout.of(models), select_targets(models, "full")
    dims = [8.0] * 25
    dims[12], dims[13] = 0, 4
    found = with_block_ranks(targets, layout, dims=dims, alphas="1", conv_dims="2")
    by_block: dict[int | None, list] = {}
    for target in found:
        by_block.setdefault(layout.block_of(target.file_name), []).append(target)
    assert {t.options["dim"] for t in by_block[13] if not wide_kernel(t.module)} == {4}
    assert all(wide_kernel(t.module) for t in by_block[12])  # rank 0 leaves the others out
    assert {t.options["dim"] for t in by_block[12]} == {2} and "alpha" not in by_block[12][0].options
    assert all(t.options == {} for t in by_block[None]) and len(by_block[None]) == 72 + 3
    assert all(t.options["alpha"] == 1 for t in by_block[1] if not wide_kernel(t.module))
    left = with_block_ranks(targets, layout, rates=layout.weights(down="zeros", up=0))
    assert {layout.block_of(t.file_name) for t in left} == {None, 12}


def test_mistakes() -> None:
    models = {"unet": base_shape("sd1")["unet"]}
    layout, targets = BlockLayout.of(models), select_targets(models, "attn-mlp")
    with pytest.raises(MixshowError, match="block_dims: expected 25 values"):
        with_block_ranks(targets, layout, dims=[4] * 23)
    with pytest.raises(MixshowError, match="conv_block_dims: expected whole numbers"):
        with_block_ranks(targets, layout, conv_dims="2.5")
    with pytest.raises(MixshowError, match="nothing is left to change"):
        with_block_ranks(targets, layout, dims=[0] * 25)


def test_rates_of_blocks() -> None:
    layout = BlockLayout.of(base_shape("sd1"))
    adapters = {
        name: nn.ParameterList([nn.Parameter(torch.ones(size))])
        for size, name in enumerate(
            ("lora_unet_conv_out", "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_input_blocks_1_1_proj_in"), 1
        )
    }
    groups = rate_groups(adapters, layout, layout.weights(down="zeros+.5", mid=0.1), 1e-3)
    assert [(group["block"], pytest.approx(group["lr"])) for group in groups] == [(-1, 1e-3), (1, 5e-4), (12, 1e-4)]
    assert [[p.numel() for p in group["params"]] for group in groups] == [[1], [3], [2]]
    torch.optim.SGD(groups)
