"""Network files of other programs are read into the right modules, faults are named, ours carry the right hashes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_safetensors, write_safetensors
from mixshow.lycoris.files import read_network_file, write_network_file
from mixshow.lycoris.metadata import base_version, network_metadata
from mixshow.lycoris.naming import NameIndex
from tests.lycoris.bases import base_shape

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.fixture(scope="module")
def index() -> NameIndex:
    return NameIndex(base_shape("sd1"))


def lora(name: str, **more: Tensor) -> dict[str, Tensor]:
    factors = {"lora_up.weight": torch.ones(320, 4), "lora_down.weight": torch.ones(4, 320)}
    parts = {"alpha": torch.tensor(4.0), **factors, **more}
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}


def test_the_fixture_of_a_real_network(shared_fixtures: Path, index: NameIndex) -> None:
    path = shared_fixtures / "community_networks" / "lora_disney.safetensors"
    tensors, _ = read_safetensors(path)
    found = read_network_file(path, index)
    assert len(found.modules) == 192
    for name, parts in found.modules.items():
        weight = index.modules[name].weight
        assert parts["lora_up.weight"].shape == (weight.shape[0], 1)
        assert parts["lora_down.weight"].shape == (1, weight.shape[1])
        assert parts["alpha"] == 1
    first = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
    for number, module in {0: "attn1_to_q", 3: "attn1_to_out_0", 4: "ff_net_0_proj", 5: "attn2_to_q"}.items():
        assert torch.equal(found.modules[f"{first}_{module}"]["lora_up.weight"], tensors[f"unet:{number}:up"])
    last = found.modules["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"]
    assert torch.equal(last["lora_down.weight"], tensors["unet:143:down"])
    text = "lora_te_text_model_encoder_layers_11_self_attn"
    for number, module in {44: "k_proj", 45: "v_proj", 46: "q_proj", 47: "out_proj"}.items():
        assert torch.equal(found.modules[f"{text}_{module}"]["lora_up.weight"], tensors[f"text_encoder:{number}:up"])
    assert {key: tensor.shape for key, tensor in found.embeddings.items()} == {
        f"bundle_emb.<s{i}>.emb_params": (1, 768) for i in (1, 2)
    }


def numbered(models: dict[str, int]) -> dict[str, Tensor]:
    return {
        f"{model}:{number}:{factor}": torch.full((1, 1), float(number))
        for model, count in models.items()
        for number in range(count)
        for factor in ("up", "down")
    }


def test_numbered_modules(index: NameIndex) -> None:
    found = read_network_file(numbered({"unet": 144, "text_encoder": 48}), index).modules
    up = {name: int(parts["lora_up.weight"]) for name, parts in found.items()}
    block = "transformer_blocks_0"
    assert up[f"lora_unet_down_blocks_0_attentions_1_{block}_attn1_to_q"] == 9
    assert up[f"lora_unet_up_blocks_1_attentions_0_{block}_ff_net_0_proj"] == 54 + 4
    assert up[f"lora_unet_mid_block_attentions_0_{block}_attn2_to_out_0"] == 143
    assert up["lora_te_text_model_encoder_layers_10_self_attn_q_proj"] == 42
    with pytest.raises(MixshowError, match="expected factors for 144 modules of the unet, found 143"):
        read_network_file(numbered({"unet": 143}), index)
    with pytest.raises(MixshowError, match="'unet:3' has only one of its two factors"):
        read_network_file({k: t for k, t in numbered({"unet": 144}).items() if k != "unet:3:up"}, index)


@pytest.mark.parametrize(
    "alpha", [torch.tensor(2.0), torch.tensor([2.0]), torch.tensor(2), torch.tensor(2.0, dtype=torch.float16)]
)
def test_scales_of_every_kind(index: NameIndex, alpha: Tensor) -> None:
    parts = read_network_file(lora(Q, alpha=alpha), index).modules[Q]
    assert list(parts) == ["alpha", "lora_up.weight", "lora_down.weight"]
    assert parts["alpha"] == 2 and parts["alpha"].shape == () and parts["alpha"].dtype is torch.float32


RANKED = {
    "lora_down.weight": (4, 320), "hada_w1_b": (4, 320), "lokr_w2_b": (4, 20), "lokr_w1_b": (4, 16),
    "a2.weight": (4, 320), "lambda_layer": (1, 4),
}  # fmt: skip


@pytest.mark.parametrize("part", RANKED)
def test_a_missing_scale_is_the_rank_where_that_is_asked_for(index: NameIndex, part: str) -> None:
    tensors = {f"{name}.{part}": torch.ones(RANKED[part]) for name in (Q, FC1)}
    with pytest.raises(MixshowError, match=rf"'{Q}', '{FC1}' have no tensor 'alpha'.* missing_alpha=rank"):
        read_network_file(tensors, index)
    found = read_network_file(tensors, index, missing_alpha="rank").modules
    assert found[Q]["alpha"] == found[FC1]["alpha"] == 4


def test_where_the_scale_is_something_else(index: NameIndex) -> None:
    infinite = torch.tensor(float("inf"), dtype=torch.float16)
    full = {"lokr_w1": torch.ones(16, 16), "lokr_w2": torch.ones(20, 20)}
    for more in ({}, {"alpha": infinite}):
        parts = read_network_file({f"{Q}.{k}": t for k, t in {**full, **more}.items()}, index).modules[Q]
        assert parts["alpha"].isfinite()
    blocks = {f"{Q}.oft_blocks": torch.ones(40, 8, 8)}
    assert read_network_file(blocks, index, missing_alpha="rank").modules[Q]["alpha"] == 0
    with pytest.raises(MixshowError, match=rf"'{Q}' has no tensor 'alpha'"):
        read_network_file(blocks, index)
    assert set(read_network_file({f"{Q}.diff": torch.ones(320, 320)}, index).modules[Q]) == {"diff"}
    with pytest.raises(MixshowError, match=rf"'{Q}\.alpha' is inf: .* half precision"):
        read_network_file(lora(Q, alpha=infinite), index)
    with pytest.raises(MixshowError, match=r"expected one number, found a tensor of shape \[4\]"):
        read_network_file(lora(Q, alpha=torch.ones(4)), index)


def test_oft_of_sd_scripts(index: NameIndex) -> None:
    blocks, name = torch.ones(40, 8, 8), Q.replace("lora_unet", "oft_unet")
    for alpha in (0.0, 0.5):
        tensors = {f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(alpha)}
        found = read_network_file(tensors, index).modules[Q]["oft_blocks"]
        assert torch.equal(found, blocks if alpha else torch.zeros_like(blocks))


def test_names_of_other_programs_meet(index: NameIndex) -> None:
    spelled = {
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": Q,
        "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": Q,
        "lora_te_encoder_layers_0_mlp_fc1": FC1,
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": FC1,
    }
    for theirs, ours in spelled.items():
        assert list(read_network_file(lora(theirs), index).modules) == [ours]
    with pytest.raises(MixshowError, match="'lora_te_encoder_layers_0_mlp_fc1' mean the same module"):
        read_network_file({**lora(FC1), **lora("lora_te_encoder_layers_0_mlp_fc1")}, index)


def test_embeddings_are_kept_apart(index: NameIndex) -> None:
    embeddings = {"bundle_emb.cat.string_to_param.*": torch.ones(2, 768), "mixshow.embedding.text_encoder.<a>": Q}
    found = read_network_file({**lora(Q), "bundle_emb.cat.emb_params": torch.ones(2, 768)}, index)
    assert list(found.modules) == [Q] and list(found.embeddings) == ["bundle_emb.cat.emb_params"]
    assert all(read_network_file({key: torch.ones(2, 4)}, index).modules == {} for key in embeddings)


def test_faults_are_named(index: NameIndex, tmp_path: Path) -> None:
    with pytest.raises(MixshowError, match=r"'x0', 'x1', .* 'x9' and 3 more name no module of this base"):
        read_network_file({**lora(Q), **{f"x{i}.diff": torch.ones(1) for i in range(13)}}, index)
    with pytest.raises(MixshowError, match="made for Stable Diffusion XL"):
        read_network_file(lora("lora_te2_text_model_encoder_layers_0_mlp_fc1"), index)
    with pytest.raises(MixshowError, match="give the text encoder as well"):
        read_network_file(lora(FC1), {"unet": base_shape("sd1")["unet"]})
    with pytest.raises(MixshowError, match=rf"'{Q}.lora_mid.weight' hold values that are no numbers"):
        read_network_file(lora(Q, **{"lora_mid.weight": torch.tensor([float("nan")])}), index)
    path = tmp_path / "whole_key.safetensors"
    write_safetensors(path, {Q: torch.ones(1)})
    with pytest.raises(MixshowError, match=rf"whole_key\.safetensors: '{Q}' names no module"):
        read_network_file(path, index)
    path.write_bytes(b"no tensors")
    with pytest.raises(MixshowError, match="expected a safetensors file"):
        read_network_file(path, index)


def test_written_files_have_the_hashes_of_sd_scripts(tmp_path: Path, index: NameIndex) -> None:
    path = tmp_path / "network.safetensors"
    tensors = {**lora(Q, alpha=torch.tensor(70000.0)), f"{FC1}.diff": torch.randn(3072, 160)}  # more than a megabyte
    metadata = network_metadata(
        base_shape("sd1"), algo="lokr", dim=4, alpha=2.5, options={"factor": 8}, more={"ss_steps": 10, "note": "own"}
    )
    write_network_file(path, tensors, metadata, dtype=torch.float16)
    found, written = read_safetensors(path)
    assert found[f"{Q}.alpha"] == 70000 and found[f"{Q}.alpha"].dtype is torch.float32
    assert torch.equal(found[f"{FC1}.diff"], tensors[f"{FC1}.diff"].half())
    contents = path.read_bytes()
    data = contents[8 + int.from_bytes(contents[:8], "little") :]
    assert written["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    counted = save(found, {key: value for key, value in written.items() if key.startswith("ss_")})
    assert written["sshs_legacy_hash"] == hashlib.sha256(counted[0x100000:0x110000]).hexdigest()[:8]
    assert {key: value for key, value in written.items() if not key.startswith("sshs_")} == {
        "ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "4", "ss_network_alpha": "2.5", "ss_network_args": written["ss_network_args"],
        "ss_steps": "10", "note": "own",
    }  # fmt: skip
    assert json.loads(written["ss_network_args"]) == {"algo": "lokr", "factor": "8"}
    again = read_network_file(path, index).modules
    assert torch.equal(again[Q]["lora_up.weight"].float(), tensors[f"{Q}.lora_up.weight"])


def test_names_for_programs_that_keep_sgm(tmp_path: Path) -> None:
    index = NameIndex(base_shape("xl"))
    ours = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    text = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    path = tmp_path / "xl.safetensors"
    write_network_file(path, {**lora(ours), **lora(text)}, {}, sgm=index)
    theirs = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    assert {key.partition(".")[0] for key in read_safetensors(path)[0]} == {theirs, text}
    assert set(read_network_file(path, index).modules) == {ours, text}


def test_base_versions() -> None:
    versions = {name: base_version(base_shape(name)) for name in ("sd1", "sd2", "xl")}
    assert versions == {"sd1": "sd_v1", "sd2": "sd_v2", "xl": "sdxl_base_v1-0"}
    assert base_version({"model": torch.nn.Linear(1, 1)}) == ""
    assert network_metadata(base_shape("sd2"), algo="lora")["ss_v2"] == "True"
