"""Single-file checkpoints of every kind, told apart by their tensors and read without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.models import Base, load_base, save_base
from mixshow.models.checkpoint import predicts_velocity
from mixshow.models.checkpoint_names import unet_tensors
from mixshow.models.checkpoint_shapes import SD1, SD2, UNET, VAE, XL, unet_config
from mixshow.models.clip_tokenizer import clip_tokenizer
from mixshow.models.glance import glance_at
from mixshow.recipes.lycoris import match
from mixshow.sampling.generate import sample
from tests.lycoris.bases import base_shape
from tests.models.checkpoints import original_tensors, published_shape
from tests.tiny import KINDS


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Path]:
    """A base and the file that holds it, under a name that says nothing."""
    base = published_shape(request.param)
    path = tmp_path_factory.mktemp("files") / "some_model.safetensors"
    save_file(original_tensors(base, request.param), path)
    return base, path


def test_a_file_is_the_base_it_was_made_of(written: tuple[Base, Path]) -> None:
    base, path = written
    loaded = load_base(path)
    for name, model in {**base.models, "vae": base.vae}.items():
        own = getattr(loaded, name)
        assert own.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(own.state_dict()[key], tensor) for key, tensor in model.state_dict().items()), name
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in own.parameters())
    assert loaded.topology == base.topology
    assert loaded.prediction_type == base.prediction_type
    assert loaded.vae.config.scaling_factor == base.vae.config.scaling_factor
    pictures = [
        sample(each, ["a red cat"], seeds=[1], steps=2, width=64, height=64)[0].tobytes() for each in (base, loaded)
    ]
    assert pictures[0] == pictures[1]


def test_a_glance_at_a_file_tells_its_geometry(written: tuple[Base, Path]) -> None:
    base, path = written
    found = glance_at(path)
    assert found.size_multiple == base.topology.size_multiple
    assert found.unet["cross_attention_dim"] == base.unet.config.cross_attention_dim


@pytest.mark.parametrize("zipped", [True, False])
def test_a_glance_at_a_pickle_tells_as_much(written: tuple[Base, Path], tmp_path: Path, zipped: bool) -> None:
    _, path = written
    tensors, pickled = load_file(path), tmp_path / "model.ckpt"
    torch.save({"state_dict": tensors}, pickled, _use_new_zipfile_serialization=zipped)
    assert glance_at(pickled) == glance_at(path)
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(VAE)}
    alone = {name.removeprefix(VAE): tensor for name, tensor in tensors.items() if name.startswith(VAE)}
    torch.save(rest, pickled, _use_new_zipfile_serialization=zipped)
    torch.save(alone, tmp_path / "vae.ckpt", _use_new_zipfile_serialization=zipped)
    assert glance_at(pickled, vae=tmp_path / "vae.ckpt") == glance_at(path)
    with pytest.raises(MixshowError, match="it holds no autoencoder"):
        glance_at(pickled)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_of_the_published_size_say_all_of_the_configuration(kind: str) -> None:
    unet = base_shape(kind)["unet"]
    shapes = {f"{UNET}{name}": tuple(tensor.shape) for name, tensor in unet_tensors(unet, unet.state_dict()).items()}
    shapes["conditioner.embedders.1.model.text_projection"] = (1280, 1280)
    found = unet_config(shapes, {"sd1": SD1, "sd2": SD2, "xl": XL}[kind])
    del found["sample_size"]  # no shape tells it
    levels = len(found["block_out_channels"])
    for name, value in found.items():
        expected = unet.config[name]
        if isinstance(value, list):
            expected = [expected] * levels if isinstance(expected, int) else list(expected)
        assert value == expected, name


def test_a_file_becomes_a_folder(written: tuple[Base, Path], tmp_path: Path) -> None:
    loaded = load_base(written[1])
    save_base(loaded, tmp_path / "folder")
    again = load_base(tmp_path / "folder")
    assert again.topology == loaded.topology and again.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]
    assert all(torch.equal(again.unet.state_dict()[name], tensor) for name, tensor in loaded.unet.state_dict().items())


def test_match_reads_only_the_shapes(written: tuple[Base, Path]) -> None:
    rows = match(written[1], preset="attn-only")
    assert all(f"| {model} " in rows for model in written[0].models)


def test_the_tokenizer_is_clips() -> None:
    tokenizer = clip_tokenizer(length=9)
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat", padding="max_length").input_ids == [
        *(49406, 320, 1125, 539, 320, 2368), *(49407, 49407, 49407),
    ]  # fmt: skip
    padded = clip_tokenizer(length=4, pad_with_zero=True)("cat", padding="max_length").input_ids
    assert padded == [49406, 2368, 49407, 0]


@pytest.fixture(scope="module")
def sd1() -> dict[str, Tensor]:
    return original_tensors(published_shape("sd1"), "sd1")


def test_old_pickles_are_read_without_running_them(sd1: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"state_dict": sd1, "global_step": 3}, tmp_path / "m.ckpt")
    loaded = load_base(tmp_path / "m.ckpt")
    assert torch.equal(loaded.unet.conv_in.weight, sd1["model.diffusion_model.input_blocks.0.0.weight"])
    torch.save({"state_dict": sd1, "callbacks": {test_the_tokenizer_is_clips: 1}}, tmp_path / "code.ckpt")
    with pytest.raises(MixshowError, match=r"unsafe one .*; take the model's .safetensors file"):
        load_base(tmp_path / "code.ckpt")


def test_an_autoencoder_of_its_own_file(sd1: dict[str, Tensor], tmp_path: Path) -> None:
    whole = {name: tensor for name, tensor in sd1.items() if not name.startswith("first_stage_model.")}
    save_file(whole, tmp_path / "m.safetensors")
    with pytest.raises(MixshowError, match="holds no autoencoder; name another place"):
        load_base(tmp_path / "m.safetensors")
    prefix = "first_stage_model."
    bare = {name.removeprefix(prefix): tensor for name, tensor in sd1.items() if name.startswith(prefix)}
    save_file(bare, tmp_path / "vae.safetensors")
    loaded = load_base(tmp_path / "m.safetensors", vae=tmp_path / "vae.safetensors")
    assert torch.equal(loaded.vae.encoder.conv_in.weight, bare["encoder.conv_in.weight"])


def test_what_the_file_says_about_predictions(tmp_path: Path, sd1: dict[str, Tensor]) -> None:
    tensors = original_tensors(published_shape("sd2"), "sd2")
    save_file(tensors, tmp_path / "a.safetensors", metadata={"modelspec.prediction_type": "epsilon"})
    assert load_base(tmp_path / "a.safetensors").prediction_type == "epsilon"
    save_file({**sd1, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "b.safetensors")
    loaded = load_base(tmp_path / "b.safetensors")
    assert (loaded.prediction_type, loaded.scheduler_config["rescale_betas_zero_snr"]) == ("v_prediction", True)


class Predictor(nn.Module):
    """A UNet that is always right about a grey picture."""

    def __init__(self, unet: nn.Module, answer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.config, self.answer = unet.config, answer

    def forward(self, latents: Tensor, time: Tensor, **_: object) -> object:
        assert time == 999
        return type("Output", (), {"sample": self.answer(latents)})


def test_predictions_are_found_by_running(tiny: Base) -> None:
    assert not predicts_velocity(Predictor(tiny.unet, lambda noise: noise))
    assert predicts_velocity(Predictor(tiny.unet, lambda noise: 0.07 * noise - 0.5))


def _inpainting(tensors: dict[str, Tensor]) -> None:
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)


def _refiner(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("cond_stage_model")]:
        del tensors[name]
    tensors["conditioner.embedders.0.model.ln_final.weight"] = torch.zeros(1)


def _network(tensors: dict[str, Tensor]) -> None:
    tensors.clear()
    tensors["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"] = torch.zeros(4, 4)


def _other(tensors: dict[str, Tensor]) -> None:
    tensors.clear()
    tensors["weight"] = torch.zeros(4, 4)


def _incomplete(tensors: dict[str, Tensor]) -> None:
    del tensors["model.diffusion_model.middle_block.0.in_layers.0.weight"]


def _other_tokens(tensors: dict[str, Tensor]) -> None:
    tensors["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"] = torch.zeros(50, 64)


def _without_end(tensors: dict[str, Tensor]) -> None:
    del tensors["model.diffusion_model.out.2.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_inpainting, "reads 9 channels and predicts 4 .inpainting"),
        (_refiner, "found XL's refiner; take the base model"),
        (_network, "found a network .LoRA, LyCORIS., which goes on top of a base"),
        (_other, "found tensors of something else"),
        (_incomplete, "1 tensors of its UNet2DConditionModel are missing, 'mid_block.resnets.0.norm1.weight' first"),
        (_other_tokens, "expected a text encoder of CLIP's 49408 tokens, found 50"),
        (_without_end, "the tensor 'out.2.weight' of a Stable Diffusion 1.x checkpoint is missing"),
    ],
)
def test_other_files_are_one_line(
    sd1: dict[str, Tensor], tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors = dict(sd1)
    change(tensors)
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(MixshowError, match=message) as error:
        load_base(tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)


def test_a_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text("hello")
    with pytest.raises(MixshowError, match="expected a safetensors file"):
        load_base(tmp_path / "m.safetensors")
