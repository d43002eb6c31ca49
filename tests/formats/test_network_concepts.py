"""Networks of other programs become concepts: the same deltas from every file; one line for what is no network."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_safetensors
from mixshow.edlora.concept import Concept, save_concept
from mixshow.formats import is_concept_file, named_by, read_network_concept, write_mix_of_show
from mixshow.fusion.layers import layers_of
from mixshow.fusion.members import Member
from mixshow.lycoris import create_network
from mixshow.lycoris.files import write_network_file
from mixshow.lycoris.naming import NameIndex
from mixshow.models import Base
from tests.lycoris.bases import base_shape
from tests.tiny import tiny_concept

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def concept(tiny: Base) -> Concept:
    """A network on all attention projections, its tokens aside."""
    return tiny_concept(tiny, "duck", rank=2)


def dotted(base: Base, network: Tensors) -> dict[tuple[str, str], Tensors]:
    """By model and path, down and up at a scale of 1."""
    found = {}
    for name, layer in layers_of(base).items():
        if f"{name}.lora_up.weight" in network:
            down, up = network[f"{name}.lora_down.weight"], network[f"{name}.lora_up.weight"]
            model = "text_encoder" if layer.stage.name == "TEXT" else "unet"
            found[model, layer.path] = {"down": down, "up": up * (network[f"{name}.alpha"] / len(down))}
    return found


def kohya(base: Base, network: Tensors, path: Path) -> Path:
    write_network_file(path / "kohya.safetensors", network, {})
    return path / "kohya.safetensors"


def diffusers_file(base: Base, network: Tensors, path: Path) -> Path:
    letters = {"down": "A", "up": "B"}
    tensors = {
        f"{model}.{place}.lora_{letters[factor]}.weight": tensor.contiguous()
        for (model, place), factors in dotted(base, network).items()
        for factor, tensor in factors.items()
    }
    save_file(tensors, path / "pytorch_lora_weights.safetensors")
    return path


def old_diffusers(base: Base, network: Tensors, path: Path) -> Path:
    """Names of 2023: attention processors in the UNet, `lora_linear_layer` in the text encoder; a pickle."""
    tensors = {}
    for (model, place), factors in dotted(base, network).items():
        for factor, tensor in factors.items():
            module, _, part = place.removesuffix(".0").rpartition(".")
            name = f"{module}.processor.{part}_lora" if model == "unet" else f"{place}.lora_linear_layer"
            tensors[f"{model}.{name}.{factor}.weight"] = tensor
    torch.save({"state_dict": tensors}, path / "old.bin")
    return path / "old.bin"


def peft_folders(base: Base, network: Tensors, path: Path) -> Path:
    """One adapter per model; the scale is in the configuration alone."""
    for model in ("unet", "text_encoder"):
        letters = {"down": "A", "up": "B"}
        tensors = {
            f"base_model.model.{place}.lora_{letters[factor]}.weight": (tensor / (2.5 if factor == "up" else 1)).clone()
            for (own, place), factors in dotted(base, network).items()
            if own == model
            for factor, tensor in factors.items()
        }
        (path / model).mkdir()
        save_file(tensors, path / model / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "alpha_pattern": {r".*": 5}, "rank_pattern": {}}
        (path / model / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("write", [kohya, diffusers_file, old_diffusers, peft_folders])
def test_every_form_is_the_same_network(
    write: Callable[[Base, Tensors, Path], Path], tiny: Base, concept: Concept, tmp_path: Path
) -> None:
    place = write(tiny, dict(concept.network), tmp_path)
    assert not is_concept_file(place)
    found = read_network_concept(place, tiny)
    assert not found.embeddings and found.source == str(place)
    expected, changes = Member(concept).changes(tiny), Member(found).changes(tiny)
    assert set(changes) == set(expected) and len(expected) > 70
    for path, change in changes.items():
        torch.testing.assert_close(change, expected[path], rtol=1e-5, atol=1e-7)


PATTERNS = {"rank_pattern": {"attn2.to_v": 4}, "alpha_pattern": {"attn2.to_v": 7, "conv1": 5}}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LoraConfig", {"lora_alpha": 3, "use_rslora": True}),
        ("LoraConfig", {"lora_alpha": 3, **PATTERNS}),
        ("LoraConfig", {"lora_alpha": 3, "use_dora": True}),
        ("LoHaConfig", {"alpha": 3, **PATTERNS}),
        ("LoKrConfig", {"alpha": 3}),
    ],
)
def test_adapters_that_peft_writes(kind: str, options: dict[str, Any], tiny: Base, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed; it is in the extra 'dev'")
    targets = ["attn1.to_q", "attn2.to_v", "conv1"]
    config = getattr(peft, kind)(r=2, target_modules=targets, **options)
    model = peft.get_peft_model(copy.deepcopy(tiny.unet), config)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_", "hada_", "lokr_")):
                parameter.normal_()
    model.save_pretrained(tmp_path)
    changes = Member(read_network_concept(tmp_path, tiny)).changes(tiny)
    merged = model.merge_and_unload().state_dict()
    assert len(changes) > 30
    for path, change in changes.items():
        expected = merged[f"{path}.weight"] - tiny.unet.state_dict()[f"{path}.weight"]
        torch.testing.assert_close(change.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_adapters_that_mean_something_else(tiny: Base, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed; it is in the extra 'dev'")
    config = peft.IA3Config(target_modules=["to_k"], feedforward_modules=[])
    peft.get_peft_model(copy.deepcopy(tiny.unet), config).save_pretrained(tmp_path)
    with pytest.raises(MixshowError, match="expected a PEFT adapter of LORA, LOHA, LOKR, found IA3") as error:
        read_network_concept(tmp_path, tiny)
    assert "\n" not in str(error.value)


def test_a_file_that_diffusers_writes(tiny: Base, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is not installed; it is in the extra 'dev'")
    from diffusers import StableDiffusionPipeline

    unet = copy.deepcopy(tiny.unet)
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=4, target_modules=["to_k"], init_lora_weights=False))
    state = peft.get_peft_model_state_dict(unet)
    metadata = {"r": 2, "lora_alpha": 4}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=metadata)
    for path, change in Member(read_network_concept(tmp_path, tiny)).changes(tiny).items():
        module = unet.get_submodule(path)
        torch.testing.assert_close(change, module.get_delta_weight("default").detach(), rtol=1e-5, atol=1e-6)


def numbered(base: Base) -> Tensors:
    """A network of cloneofsimo's program on the attention projections of both models, without GEGLU."""
    blocks, text = 16, base.text_encoder.config.num_hidden_layers
    generator = torch.Generator().manual_seed(0)
    order = []
    for model, side in (("unet", ("down_blocks", "up_blocks", "mid_block")), ("text_encoder", ("",))):
        modules = dict(base.models[model].named_modules())
        parts = (
            [f"{attention}.{part}" for attention in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")]
            if model == "unet"
            else [f"self_attn.{part}" for part in ("k_proj", "v_proj", "q_proj", "out_proj")]
        )
        roots = [path for path in modules if re.search(r"transformer_blocks\.\d+$|encoder\.layers\.\d+$", path)]
        for start in side:
            order += [(model, modules[f"{p}.{part}"]) for p in roots if p.startswith(start) for part in parts]
    assert len(order) == 8 * blocks + 4 * text
    counts = {"unet": 0, "text_encoder": 0}
    found = {}
    for model, module in order:
        found[f"{model}:{counts[model]}:up"] = torch.randn(module.weight.shape[0], 1, generator=generator)
        found[f"{model}:{counts[model]}:down"] = torch.randn(1, module.weight.shape[1], generator=generator)
        counts[model] += 1
    return found


def test_lists_of_the_first_program(tiny: Base, tmp_path: Path) -> None:
    tensors = numbered(tiny)
    kinds = {"unet": json.dumps(["CrossAttention", "Attention"]), "text_encoder": json.dumps(["CLIPAttention"])}
    save_file({**tensors, "<s1>": torch.randn(16)}, tmp_path / "new.safetensors", kinds)
    expected = read_network_concept(tmp_path / "new.safetensors", tiny)
    for model, name in (("unet", "old.pt"), ("text_encoder", "old.text_encoder.pt")):
        torch.save([tensor for key, tensor in tensors.items() if key.startswith(f"{model}:")], tmp_path / name)
    torch.save({"<s1>": torch.ones(16)}, tmp_path / "old.ti.pt")
    found = read_network_concept(tmp_path / "old.pt", tiny)
    assert found.network.keys() == expected.network.keys()
    assert all(torch.equal(tensor, found.network[key]) for key, tensor in expected.network.items())
    assert found.text == expected.text == "<s1>"
    assert torch.equal(found.embeddings["<s1>"], torch.ones(tiny.topology.layers, 16))


def test_algorithms_and_a_network_for_one_model_only(tiny: Base, tmp_path: Path) -> None:
    for algo in ("loha", "lokr", "full", "diag-oft"):
        network = create_network({"unet": tiny.unet}, algo=algo, dim=4, targets=["lora_unet_conv_in"])
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
        network.save(tmp_path / f"{algo}.safetensors")
        found = read_network_concept(tmp_path / f"{algo}.safetensors", tiny)
        assert list(Member(found).changes(tiny)) == ["conv_in"]


def test_what_is_no_network_for_this_base(tiny: Base, xl: Base, concept: Concept, tmp_path: Path) -> None:
    def says(tensors: Tensors, expected: str) -> None:
        save_file(tensors, tmp_path / "a.safetensors")
        with pytest.raises(MixshowError, match=expected) as error:
            Member(read_network_concept(tmp_path / "a.safetensors", tiny)).changes(tiny)
        assert "\n" not in str(error.value) and "a.safetensors" in str(error.value)

    says({"model.diffusion_model.out.2.weight": torch.ones(1)}, "found a whole model")
    says({"<cat>": torch.ones(16)}, "found an embedding; give it as embedding")
    says({"emb_params": torch.ones(2, 16)}, "found an embedding")
    torch.save({"string_to_param": {"*": torch.ones(1, 16)}, "name": "cat"}, tmp_path / "cat.pt")
    with pytest.raises(
        MixshowError, match=r"cat\.pt: expected a network's tensors by name, found.*; a textual inversion"
    ):
        read_network_concept(tmp_path / "cat.pt", tiny)
    says({"a.weight": torch.ones(2)}, "found other tensors, such as 'a.weight'")
    wide = {key: torch.cat([t, t], 1) if "lora_down" in key else t.clone() for key, t in concept.network.items()}
    says(wide, "does not fit base 'tiny'.*made for a base of other widths; 10 other modules or more")
    save_file({k: t.contiguous() for k, t in tiny_concept(xl, "a").network.items()}, tmp_path / "xl.safetensors")
    with pytest.raises(MixshowError, match="made for Stable Diffusion XL"):
        read_network_concept(tmp_path / "xl.safetensors", tiny)
    peft_folders(tiny, dict(concept.network), tmp_path)
    (tmp_path / "unet" / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT"}))
    with pytest.raises(MixshowError, match="found OFT"):
        read_network_concept(tmp_path / "unet", tiny)
    (tmp_path / "unet" / "adapter_config.json").unlink()
    with pytest.raises(MixshowError, match="missing_alpha=rank"):
        read_network_concept(tmp_path / "unet", tiny)
    assert read_network_concept(tmp_path / "unet", tiny, missing_alpha="rank").network


def test_xl_under_the_names_that_most_programs_give_it(xl: Base, tmp_path: Path) -> None:
    concept = tiny_concept(xl, "duck")
    write_network_file(tmp_path / "a.safetensors", concept.network, {}, sgm=NameIndex(xl.models))
    assert any(key.startswith("lora_unet_input_blocks") for key in read_safetensors(tmp_path / "a.safetensors")[0])
    found = read_network_concept(tmp_path / "a.safetensors", xl)
    assert found.network.keys() == concept.network.keys()
    assert found.metadata["text_widths"] == list(xl.text_widths)


def test_our_own_and_published_files_are_concept_files(tiny: Base, concept: Concept, tmp_path: Path) -> None:
    save_concept(concept, tmp_path / "ours.safetensors")
    write_mix_of_show(concept, tmp_path / "published.pth", tiny.models)
    assert is_concept_file(tmp_path / "ours.safetensors") and is_concept_file(tmp_path / "published.pth")
    with pytest.raises(MixshowError, match="no such concept or network file"):
        is_concept_file(tmp_path / "nowhere.pt")


def test_a_trigger_names_known_tokens_only(tiny: Base, concept: Concept) -> None:
    named = named_by(concept, " <duck1>  toy ", tiny)
    assert (named.text, named.ordinary_words) == ("<duck1> toy", "toy")
    with pytest.raises(MixshowError, match="the trigger names <cat>, which it has no embedding of; it has: <duck1>"):
        named_by(concept, "a <cat>", tiny)
    with pytest.raises(MixshowError, match="expected words of its captions"):
        named_by(concept, " ", tiny)


def test_the_real_network_and_its_tokens(shared_fixtures: Path, tiny: Base) -> None:
    """Read for Stable Diffusion 1.5, without its weights; a smaller base is told so in one line."""
    path = shared_fixtures / "community_networks" / "lora_disney.safetensors"
    assert not is_concept_file(path)
    found = read_network_concept(path, dataclasses.replace(tiny, **base_shape("sd1")))
    assert found.text == "<s1> <s2>" and len(found.network) == 3 * 192
    original, _ = read_safetensors(path)
    for token, vectors in found.embeddings.items():
        assert torch.equal(vectors, original[token].expand(16, -1))  # one vector, read by every layer
    with pytest.raises(MixshowError, match="the file was made for another base") as error:
        read_network_concept(path, tiny)
    assert "\n" not in str(error.value)
