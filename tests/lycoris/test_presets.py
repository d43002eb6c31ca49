"""Presets select what they say on the models of every base, and own ones do what LyCORIS's would."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from mixshow.core.errors import MixshowError, OptionsError
from mixshow.lycoris.naming import NameIndex
from mixshow.lycoris.presets import PRESETS, Preset, load_preset, select_targets
from tests.lycoris.bases import base_shape

# Modules of all text encoders together, and of the UNet.
COUNTS = {
    "sd1": {
        "full": (72, 282), "full-lin": (72, 230), "attn-mlp": (72, 192), "attn-only": (48, 128),
        "unet-only": (0, 282), "unet-transformer-only": (0, 192), "unet-convblock-only": (0, 88), "ia3": (36, 80),
    },
    "sd2": {
        "full": (138, 282), "full-lin": (138, 230), "attn-mlp": (138, 192), "attn-only": (92, 128),
        "unet-only": (0, 282), "unet-transformer-only": (0, 192), "unet-convblock-only": (0, 88), "ia3": (69, 80),
    },
    "xl": {
        "full": (264, 792), "full-lin": (264, 752), "attn-mlp": (264, 722), "attn-only": (176, 560),
        "unet-only": (0, 792), "unet-transformer-only": (0, 722), "unet-convblock-only": (0, 68), "ia3": (132, 350),
    },
}  # fmt: skip


class Toy(nn.Module):
    """A bit of everything, at paths that are easy to read."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, 4, 3)
        self.attn = nn.MultiheadAttention(4, 2)
        self.body = nn.ModuleDict({"one": nn.Linear(4, 4), "mix": nn.Conv2d(4, 4, 1), "norm": nn.LayerNorm(4)})
        self.again = self.body["one"]


def names(targets: list) -> list[str]:
    return [target.file_name for target in targets]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("base", COUNTS)
def test_counts(base: str, preset: str) -> None:
    models = base_shape(base)
    found = names(select_targets(models, preset))
    unet = sum(name.startswith("lora_unet_") for name in found)
    assert (len(found) - unet, unet) == COUNTS[base][preset]
    assert set(found) <= set(NameIndex(models).modules) and len(set(found)) == len(found)


def test_every_preset_has_its_count() -> None:
    assert all(set(counts) == set(PRESETS) for counts in COUNTS.values())


@pytest.mark.parametrize(("base", "norms"), [("sd1", 108), ("xl", 255)])
def test_normalisation_layers_only_when_asked(base: str, norms: int) -> None:
    found = select_targets(base_shape(base), "full", train_norm=True)
    assert sum(target.algo == "norm" for target in found) == norms
    assert not any(target.algo == "norm" for target in select_targets(base_shape(base), "full"))


def test_feed_forward_of_ia3_is_trained_on_its_input() -> None:
    by_name = {target.file_name: target.options for target in select_targets(base_shape("sd1"), "ia3")}
    assert by_name["lora_te_text_model_encoder_layers_0_mlp_fc2"] == {"train_on_input": True}
    assert by_name["lora_te_text_model_encoder_layers_0_self_attn_k_proj"] == {}
    unet = "lora_unet_mid_block_attentions_0_transformer_blocks_0"
    assert by_name[f"{unet}_ff_net_2"] == {"train_on_input": True} and by_name[f"{unet}_attn2_to_k"] == {}


TOML = """
enable_conv = true
use_fnmatch = true
lora_prefix = "lora"
unet_target_module = ["Transformer2DModel", "ResnetBlock2D"]
unet_target_name   = ["conv_in", "time_embedding.linear_?"]
text_encoder_target_module = ["CLIPSdpaAttention"]
exclude_name = ["*.proj_in", "*.time_emb_proj"]

[module_algo_map.CrossAttention]
algo = "lokr"
factor = 8
dim = 10000
wd_on_output = "False"

[module_algo_map.FeedForward]
algo = "loha"
dim = 4

[name_algo_map."conv_in"]
algo = "glora"

[name_algo_map."time_embedding.*"]
algo = "ia3"
"""
YAML = """
use_fnmatch: true
unet_target_module: [Transformer2DModel, ResnetBlock2D]
unet_target_name: [conv_in, "time_embedding.linear_?"]
text_encoder_target_module: [CLIPAttention]
exclude_name: ["*.proj_in", "*.time_emb_proj"]
module_algo_map:
  Attention: {algo: lokr, factor: 8, dim: 10000, wd_on_out: false}
  FeedForward: {algo: loha, dim: 4}
name_algo_map:
  conv_in: {algo: glora}
  time_embedding.*: {algo: ia3}
"""


def test_lycoris_toml_and_the_same_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(TOML)
    (tmp_path / "own.yml").write_text(YAML)
    models = base_shape("sd1")
    found = select_targets(models, str(tmp_path / "own.toml"))
    assert sum(target.file_name.startswith("lora_te_") for target in found) == 48
    unet = [target for target in found if target.file_name.startswith("lora_unet_")]
    kxk = Counter(target.algo for target in unet if getattr(target.module, "kernel_size", (1,))[0] > 1)
    assert Counter(target.algo for target in unet) == {"lokr": 128, "loha": 32, None: 74, "glora": 1, "ia3": 2}
    assert kxk == {None: 44, "glora": 1}
    lokr = next(target for target in unet if target.algo == "lokr")
    assert lokr.options == {"factor": 8, "dim": 10000, "wd_on_out": False}
    again = select_targets(models, tmp_path / "own.yml")
    assert [(t.file_name, t.algo, t.options) for t in again] == [(t.file_name, t.algo, t.options) for t in found]


def test_inner_classes_keep_the_algorithm_and_names_go_first() -> None:
    preset = load_preset(
        {
            "unet_target_module": ["Transformer2DModel"],
            "module_algo_map": {
                "Transformer2DModel": {"algo": "lokr", "factor": 4},
                "FeedForward": {"dim": 2},
                "Attention": {"algo": "loha"},
            },
            "name_algo_map": {"mid_block.*to_out": {"algo": "full"}},
        }
    )
    found = {t.file_name: (t.algo, t.options) for t in select_targets({"unet": base_shape("sd1")["unet"]}, preset)}
    block = "lora_unet_mid_block_attentions_0"
    assert found[f"{block}_proj_in"] == ("lokr", {"factor": 4})
    assert found[f"{block}_transformer_blocks_0_ff_net_2"] == ("lokr", {"dim": 2})
    assert found[f"{block}_transformer_blocks_0_attn1_to_q"] == ("loha", {})
    assert found[f"{block}_transformer_blocks_0_attn1_to_out_0"] == ("full", {})


@pytest.mark.parametrize(
    ("pattern", "use_fnmatch", "count"),
    [
        ("to_q", False, 0),  # regular expressions start where the path starts
        (".*to_q", False, 32),
        ("mid_block", False, 12 + 6),  # and may end before it ends
        ("to_q", True, 0),
        ("*to_q", True, 32),
        ("mid_block", True, 0),
        ("conv_in", True, 1),
    ],
)
def test_patterns(pattern: str, use_fnmatch: bool, count: int) -> None:
    preset = Preset("own", unet_target_name=(pattern,), use_fnmatch=use_fnmatch)
    unet = {"unet": base_shape("sd1")["unet"]}
    if count:
        assert len(select_targets(unet, preset)) == count
    else:
        with pytest.raises(MixshowError, match="matches nothing in the unet"):
            select_targets(unet, preset)


@pytest.mark.parametrize("root", ["", "text_model."])
def test_text_encoder_names_with_and_without_their_root(root: str) -> None:
    preset = Preset("own", text_encoder_target_name=(f"{root}encoder.layers.3.mlp.fc?",), use_fnmatch=True)
    found = names(select_targets({"text_encoder": base_shape("sd1")["text_encoder"]}, preset))
    assert found == [f"lora_te_text_model_encoder_layers_3_mlp_fc{i}" for i in (1, 2)]


def test_what_is_excluded_stays_out_with_everything_inside() -> None:
    everything = names(select_targets(base_shape("sd1"), "full"))
    preset = dataclasses.replace(PRESETS["full"], exclude_name=("mid_block$", "encoder.layers.1$"))
    found = names(select_targets(base_shape("sd1"), preset))
    assert not any("mid_block" in name or "layers_1_" in name for name in found)
    assert any("layers_10_" in name for name in found) and set(found) < set(everything)


def test_any_module_and_what_cannot_be_trained_there() -> None:
    toy = {"model": Toy()}
    assert names(select_targets(toy, "full")) == ["lycoris_inlet", "lycoris_body_one", "lycoris_body_mix"]
    assert names(select_targets(toy, "full-lin")) == ["lycoris_body_one", "lycoris_body_mix"]
    own = Preset("own", target_module=("ModuleDict",))
    assert names(select_targets(toy, own, train_norm=True)) == [f"lycoris_body_{p}" for p in ("one", "mix", "norm")]


def test_no_preset_leaks_into_the_next() -> None:
    before = select_targets(base_shape("sd1"), "attn-mlp")
    mapped = load_preset({"unet_target_module": ["Attention"], "module_algo_map": {"Attention": {"algo": "loha"}}})
    select_targets({"unet": base_shape("sd1")["unet"]}, mapped)
    assert select_targets(base_shape("sd1"), "attn-mlp") == before
    with pytest.raises(TypeError):
        PRESETS["full"] = mapped  # type: ignore[index]


def test_patterns_that_fit_nothing_are_told(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("mixshow").propagate = True
    preset = load_preset({"unet_target_module": ["Attention", "BertLayer"], "exclude_name": [".*to_w"]})
    with caplog.at_level("WARNING", "mixshow"):
        select_targets({"unet": base_shape("sd1")["unet"]}, preset)
        select_targets({"unet": base_shape("sd1")["unet"]}, "ia3")
    assert [record.getMessage() for record in caplog.records] == ["preset 'preset': nothing in unet fits .*to_w"]


def test_mistakes(tmp_path: Path) -> None:
    unet = {"unet": base_shape("sd1")["unet"]}
    with pytest.raises(MixshowError, match=r"preset 'attn-mpl': unknown.*did you mean 'attn-mlp'"):
        select_targets(unet, "attn-mpl")
    with pytest.raises(MixshowError, match=r"matches nothing in the unet.*did you mean 'Attention'"):
        select_targets(unet, Preset("own", unet_target_module=("Attenton",)))
    with pytest.raises(MixshowError, match="has no classes or names for unet"):
        select_targets(unet, Preset("own", text_encoder_target_module=("CLIPMLP",)))
    with pytest.raises(MixshowError, match=r"pattern '\*to_q': not a regular expression.*use_fnmatch"):
        select_targets(unet, Preset("own", unet_target_name=("*to_q",)))
    with pytest.raises(OptionsError) as error:
        load_preset({"unet_target_modul": [], "enable_conv": "perhaps", "exclude_name": "x", "name_algo_map": {"a": 1}})
    assert len(error.value.problems) == 4 and "did you mean 'unet_target_module'" in str(error.value)
    with pytest.raises(MixshowError, match="cannot be read"):
        load_preset(tmp_path / "none.yml")
    (tmp_path / "broken.toml").write_text("enable_conv = tru")
    with pytest.raises(MixshowError, match=r"broken\.toml: not valid TOML"):
        load_preset(tmp_path / "broken.toml")
    (tmp_path / "list.yml").write_text("- full")
    with pytest.raises(MixshowError, match="expected a mapping"):
        load_preset(tmp_path / "list.yml")


def test_selecting_reads_no_weights() -> None:
    assert all(p.device == torch.device("meta") for m in base_shape("xl").values() for p in m.parameters())


@pytest.mark.parametrize("preset", ["attn-mlp", "unet-convblock-only", "own"])
def test_the_published_package_selects_the_same(preset: str, tmp_path: Path) -> None:
    kohya = pytest.importorskip("lycoris.kohya")
    models = base_shape("sd1")
    if preset == "own":
        (tmp_path / "own.toml").write_text(TOML.replace("CrossAttention]", "Attention]").replace("CLIPSdpa", "CLIP"))
        preset = str(tmp_path / "own.toml")
    theirs = kohya.create_network(
        1.0, 16, 8, None, models["text_encoder"], models["unet"], preset=preset, conv_dim=8, conv_alpha=4
    )
    index = NameIndex(models)
    algorithms = {index.find(lora.lora_name): lora.name for lora in (*theirs.text_encoder_loras, *theirs.unet_loras)}
    if preset == "attn-mlp":  # its presets know a class of other models that these have too
        for number in (1, 2):
            algorithms.pop(f"lora_unet_time_embedding_linear_{number}")
    ours = {target.file_name: target.algo or "locon" for target in select_targets(models, preset)}
    assert algorithms == {name: {"lokr": "kron"}.get(algo, algo) for name, algo in ours.items()}
