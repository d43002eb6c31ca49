"""Train, fuse and compose on Stable Diffusion 2.x and XL, from the command line (1.x is every other test's)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mixshow.cli.main import main
from mixshow.edlora.concept import attach_concepts, save_concept
from mixshow.formats import read_concept
from mixshow.models import Base, encode_prompts, load_base, prompt_states, save_base
from mixshow.sampling.compose import compose
from mixshow.sampling.conditions import load_adapter
from mixshow.sampling.regions import PixelBox, Region
from mixshow.sampling.scene import PoseGuide, Scene
from tests.edlora.conftest import write_pictures
from tests.tiny import tiny_adapter, tiny_concept


@pytest.fixture(params=["sd2", pytest.param("xl", marks=pytest.mark.slow)])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    """A tiny base, in the working folder as `base`."""
    monkeypatch.chdir(tmp_path)
    found: Base = request.getfixturevalue(request.param)
    save_base(found, "base")
    return found


def test_the_whole_story(base: Base) -> None:
    pictures = write_pictures(Path("data"), 1)
    Path("train.yml").write_text(
        f"base: base\noutput: pip\nconcept: {{tokens: <pip1>+<pip2>, initialiser: <rand-0.1>+boy}}\n"
        f"data: {{images: {pictures}/image, masks: {pictures}/mask, captions: {pictures}/caption, size: 64}}\n"
        "network: {rank: 2, text_encoder: attention, unet: attention}\n"
        "train: {steps: 2, batch_size: 1, lr: {embedding: 1e-2, text_encoder: 1e-2, unet: 1e-2}}\n"
        "loss: {mask: true, attention_weight: 0.01, min_snr: 5}\nsample: {prompts: []}\n"
    )
    assert main(["train", "train.yml"]) == 0
    concept = read_concept("pip/concept.safetensors")
    assert all(vectors.shape == (17 if len(base.text_widths) > 1 else 16, base.topology.text_width)
               for vectors in concept.embeddings.values())  # fmt: skip
    prefixes = ["lora_te1_", "lora_te2_"] if len(base.text_widths) > 1 else ["lora_te_"]
    for prefix in [*prefixes, "lora_unet_"]:
        ups = [tensor for key, tensor in concept.network.items() if key.startswith(prefix) and "lora_up" in key]
        assert any(tensor.abs().max() > 0 for tensor in ups), prefix

    save_concept(tiny_concept(base, "fox"), "fox.safetensors")
    Path("fuse.yml").write_text(
        "base: base\nconcepts: [{file: pip/concept.safetensors}, {file: fox.safetensors}]\noutput: fused\n"
        "statistics: {steps: 1, text_prompts: ['a {concept}'], picture_prompts: ['{concept}']}\n"
        "refine: {steps: 2, prompts: ['{concept}']}\n"
        "anchor: {captions: ['a dog']}\nreport: {steps: 1, prompts: ['a {concept} in the rain'], captions: ['a boy']}\n"
    )
    assert main(["fuse", "fuse.yml"]) == 0
    report = json.loads(Path("fused/fusion_report.json").read_text())
    assert report["summary"]["text encoder"]["layers"] == 8 * len(base.text_widths)
    assert 0 < report["held_out"]["errors"]["<fox1> <fox2>"] < 1.5
    fused = load_base("fused")
    assert fused.prediction_type == base.prediction_type
    known, attachment = attach_concepts(base, [tiny_concept(base, "fox", strength=0)])
    with attachment, torch.no_grad():
        assert fused.vocabulary.tokens == ("<pip1>", "<pip2>", "<fox1>", "<fox2>")
        for own, other in zip(known.text_encoders.values(), fused.text_encoders.values(), strict=True):
            rows = [
                each.get_input_embeddings()(torch.tensor(each_base.vocabulary.ids["<fox2>"]))
                for each, each_base in ((own, known), (other, fused))
            ]
            torch.testing.assert_close(*rows)

    Path("scene.yml").write_text(
        "model: fused\nsize: [128, 64]\nprompt: a <pip1> <pip2> and a <fox1> <fox2> on the beach\nsteps: 2\n"
        "regions:\n  - {box: [0, 0, 0.5, 1], prompt: a <pip1> <pip2>}\n"
        "  - {box: [0.5, 0, 1, 1], prompt: <fox1> <fox2>}\noutput: scene.png\n"
    )
    assert main(["compose", "scene.yml"]) == 0
    assert Image.open("scene.png").size == (128, 64)


def test_regions_over_everything_are_the_plain_prompt(base: Base) -> None:
    options = {"size": (64, 64), "steps": 2, "guidance": 3.0}
    region = Region(PixelBox(0, 0, 64, 64), "a red dog")
    regional, plain = (
        compose(base, Scene("a red dog", regions=regions, **options), seeds=[1])[0].tobytes()
        for regions in ((region,), ())
    )
    assert max(abs(a - b) for a, b in zip(regional, plain, strict=True)) <= 1


def test_adapters_of_the_kind(base: Base) -> None:
    tiny_adapter(base).save_pretrained("adapter")
    adapter = load_adapter("adapter", base)
    picture = Image.effect_noise((64, 64), 90).convert("RGB")
    scene = Scene("a dog", size=(64, 64), steps=2)
    with_pose = Scene("a dog", size=(64, 64), steps=2, pose=PoseGuide(picture, 1.0, (0.0, 1.0)))
    without = compose(base, scene, seeds=[1])[0]
    assert compose(base, with_pose, seeds=[1], adapter=adapter)[0].tobytes() != without.tobytes()


def test_concepts_of_another_kind_are_refused(
    xl: Base, tiny: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_base(xl, tmp_path / "base")
    save_concept(tiny_concept(tiny, "pip"), tmp_path / "pip.safetensors")
    options = ["--model", str(tmp_path / "base"), "--concept", str(tmp_path / "pip.safetensors")]
    assert main(["sample", "a <pip1> <pip2>", "steps=1", *options]) == 2
    assert "it was trained on another base" in capsys.readouterr().err


def test_states_of_a_prompt_are_the_layers_of_both_encoders(xl: Base) -> None:
    with torch.no_grad():
        text = prompt_states(xl, ["a red dog", ""])
        outputs = []
        for name, encoder in xl.text_encoders.items():
            ids = xl.tokenizers[name](["a red dog"], padding="max_length", max_length=24, return_tensors="pt").input_ids
            outputs.append(encoder(ids, output_hidden_states=True))
    torch.testing.assert_close(text.states[0, 3], torch.cat([output.hidden_states[-2][0] for output in outputs], -1))
    torch.testing.assert_close(text.pooled[0], outputs[1].text_embeds[0])
    assert not text.states[1].any() and not text.pooled[1].any()
    assert torch.equal(encode_prompts(xl, ["a red dog"])[0], text.states[0])
