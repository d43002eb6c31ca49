"""`mixshow compose` and `mixshow sample`, through the real entry point on a tiny random base."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mixshow.cli.main import main
from mixshow.cli.sample import parse_network
from mixshow.config.seeds import parse_seeds
from mixshow.core.errors import MixshowError
from mixshow.core.files import write_safetensors
from mixshow.core.seeding import derived_seed
from mixshow.edlora.concept import Concept, save_concept
from mixshow.lycoris import create_network
from mixshow.models import Base
from mixshow.sampling.pictures import picture_grid, read_about
from tests.tiny import tiny_adapter, tiny_concept

OPTIONS = Path(__file__).resolve().parents[2] / "options" / "compose"
PERSON = [[20 + 3 * i, 10 + 2 * i] for i in range(18)]


@pytest.fixture(scope="module")
def adapter_folder(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    tiny_adapter(tiny).save_pretrained(folder)
    return folder


@pytest.fixture
def scene(tiny_folder: Path, adapter_folder: Path, tmp_path: Path) -> dict:
    """A small scene that works."""
    return {
        "model": str(tiny_folder),
        "size": [128, 64],
        "prompt": "a picture of the beach",
        "pose": {"people": [PERSON], "adapter": str(adapter_folder)},
        "regions": [{"box": [0, 0, 0.5, 1], "prompt": "a boy"}, {"box": [0.5, 0, 1, 1], "prompt": "a girl"}],
        "steps": 2,
        "guidance": 3,
        "output": str(tmp_path / "scene.png"),
    }


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., int]:
    def run(scene: dict, *overrides: str) -> int:
        path = tmp_path / "scene.yml"
        path.write_text(yaml.safe_dump(scene))
        return main(["compose", str(path), *overrides])

    return run


def same(first: Path, second: Path) -> bool:
    return np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))


def test_a_picture_is_made_again_from_itself(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    pose = tmp_path / "pose.json"
    pose.write_text(json.dumps({"people": [{"pose_keypoints_2d": [v for p in PERSON for v in (*p, 0.9)]}]}))
    scene["pose"].update(json=str(pose))
    del scene["pose"]["people"]
    assert compose(scene, "seeds=[3,4,5]", "batch_size=2", "grid=true") == 0
    pose.unlink()
    names = ["scene_seed3.png", "scene_seed4.png", "scene_seed5.png", "scene_grid.png"]
    assert all((tmp_path / name).is_file() for name in names)
    picture = tmp_path / "scene_seed4.png"
    assert main(["compose", str(picture)]) == 0
    assert same(picture, tmp_path / "scene_seed4_again.png")
    assert not same(picture, tmp_path / "scene_seed3.png")
    about, again = read_about(picture), read_about(tmp_path / "scene_seed4_again.png")
    assert about == again
    assert about["seed"] == 4
    assert about["scene"]["regions"][1]["box"] == [64, 0, 128, 64]
    assert len(about["scene"]["pose"]["people"][0]) == 18


def test_a_pose_picture_travels_in_the_metadata(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    drawing = tmp_path / "pose.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 128, 3), dtype=np.uint8)).save(drawing)
    scene["pose"] = {"image": str(drawing), "adapter": scene["pose"]["adapter"]}
    assert compose(scene) == 0
    drawing.unlink()
    assert main(["compose", str(tmp_path / "scene.png"), f"output={tmp_path / 'other.png'}"]) == 0
    assert same(tmp_path / "scene.png", tmp_path / "other.png")


@pytest.mark.parametrize("source", ["rewrite", "layout"])
def test_published_regions_make_the_same_picture(
    compose: Callable[..., int], scene: dict, tmp_path: Path, source: str
) -> None:
    assert compose(scene) == 0
    ours = (tmp_path / "scene.png").rename(tmp_path / "ours.png")
    layout = tmp_path / "layout.txt"
    layout.write_text("char1='a boy' box1='[0, 0, 64, 64]'\nchar2='a girl'\nbox2='[0, 64, 64, 128]'\n")
    del scene["regions"]
    scene["layout"] = str(layout)
    if source == "rewrite":
        del scene["layout"]
        scene["rewrite"] = "[a boy]-*-[]-*-[0, 0, 64, 64]|[a girl]-*-[]-*-[0, 64, 64, 128]"
    assert compose(scene) == 0
    assert same(ours, tmp_path / "scene.png")


def test_regions_of_every_shape_are_made_again_from_the_picture(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    mask = np.zeros((32, 32), dtype=np.uint8)
    mask[8:, 4:20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    painted = np.zeros((64, 128, 3), dtype=np.uint8)
    painted[:, 100:] = (0, 0, 255)
    Image.fromarray(painted).save(tmp_path / "painted.png")
    scene["masks"] = str(tmp_path / "painted.png")
    scene["regions"] = [
        {"mask": str(tmp_path / "mask.png"), "prompt": "a boy", "feather": 0.1, "priority": 1},
        {"polygon": [[0.4, 0], [0.9, 0], [0.6, 1]], "prompt": "a girl"},
        {"colour": "#0000ff", "prompt": "a dog", "weight": 2},
        {"box": [0.5, 0.5, 1, 1], "prompt": "a hat"},
    ]
    assert compose(scene) == 0
    said = capsys.readouterr().err
    assert "mask.png: 32x32 pixels, stretched over the picture of 128x64" in said
    assert "regions 1 and 3 overlap and share the place" in said  # 2 and 3 have weights, 0 is above all
    (tmp_path / "mask.png").unlink()
    (tmp_path / "painted.png").unlink()
    assert main(["compose", str(tmp_path / "scene.png")]) == 0
    assert same(tmp_path / "scene.png", tmp_path / "scene_again.png")
    assert read_about(tmp_path / "scene.png")["scene"]["edges"] == "soft"


def test_a_colour_the_picture_does_not_have(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.new("RGB", (128, 64), (0, 0, 255)).save(tmp_path / "painted.png")
    scene |= {"masks": str(tmp_path / "painted.png"), "regions": [{"colour": "#ff0000", "prompt": "a boy"}]}
    assert compose(scene) == 2
    assert "no pixel has the colour #ff0000; it has most of #0000ff" in capsys.readouterr().err
    scene["regions"][0]["colour"] = "reddish"
    assert compose(scene) == 2
    assert 'regions[0].colour: expected a colour such as "#ff0000" or red' in capsys.readouterr().err
    del scene["masks"]
    scene["regions"][0] = {"mask": str(tmp_path / "black.png"), "prompt": "a boy"}
    Image.new("L", (128, 64)).save(tmp_path / "black.png")
    assert compose(scene) == 2
    assert "black.png: expected a mask with some white in it, found only black" in capsys.readouterr().err


def test_common_prompts_stand_in_every_region(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    written_out = scene | {
        "regions": [
            {"box": [0, 0, 0.5, 1], "prompt": "a photo of a boy , rain", "negative_prompt": "red, blue"},
            {"box": [0.5, 0, 1, 1], "prompt": "a photo of a girl , rain", "negative_prompt": "hat, blue"},
        ],
        "negative_prompt": "red, blue",
    }
    assert compose(written_out) == 0
    expected = (tmp_path / "scene.png").rename(tmp_path / "written_out.png")
    scene["regions"][1]["negative_prompt"] = "hat"
    common = {"common_prompt": "a photo of {prompt} , rain", "common_negative": "blue", "negative_prompt": "red"}
    assert compose(scene | common) == 0
    assert same(expected, tmp_path / "scene.png")
    assert main(["compose", str(tmp_path / "scene.png")]) == 0
    assert same(expected, tmp_path / "scene_again.png")


def test_a_region_names_its_concept(
    tiny: Base, compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_concept(tiny_concept(tiny, "pip"), tmp_path / "pip.safetensors")
    scene["concepts"] = [str(tmp_path / "pip.safetensors")]
    scene["regions"][0]["prompt"] = "a photo of <pip1> <pip2>"
    assert compose(scene) == 0
    expected = (tmp_path / "scene.png").rename(tmp_path / "written_out.png")
    scene["regions"][0] |= {"prompt": "a photo of {concept}", "concept": "pip"}
    assert compose(scene) == 0
    assert same(expected, tmp_path / "scene.png")
    assert main(["compose", str(tmp_path / "scene.png")]) == 0
    assert same(expected, tmp_path / "scene_again.png")
    assert compose(scene, "--preview", "model=./nowhere") == 0
    for change, message in (
        ({"concept": "pop"}, "regions[0].concept: the model knows no 'pop'; did you mean 'pip'?"),
        ({"concept": None}, "regions[0].concept: expected the name of a concept for {concept}"),
        ({"prompt": "a boy"}, "regions[0].prompt: expected {concept}, where the tokens of 'pip' stand"),
    ):
        regions = [scene["regions"][0] | change, scene["regions"][1]]
        assert compose(scene | {"regions": regions}, "--check") == 2
        assert message in capsys.readouterr().err
    assert compose(scene | {"concepts": []}, "--check") == 2
    assert "regions[0].concept: the model knows no 'pip'; it has none" in capsys.readouterr().err


def test_rows_and_columns_are_boxes(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    assert compose(scene, "edges=soft") == 0
    boxes = (tmp_path / "scene.png").rename(tmp_path / "boxes.png")
    scene["layout"] = "1,1"
    scene["regions"] = [{"prompt": region["prompt"]} for region in scene["regions"]]
    assert compose(scene) == 0
    assert same(boxes, tmp_path / "scene.png")


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"regions": [{"box": [0, 0, 200, 64], "prompt": "a"}]}, ["regions[0].box", "inside the picture of 128x64"]),
        ({"regions": [{"box": [0.5, 0, 0.2, 1], "prompt": "a"}]}, ["regions[0].box", "no area"]),
        ({"regions": [{"box": [0.5, 0, 1.2, 1], "prompt": "a"}]}, ["regions[0].box", "fractions from 0 to 1"]),
        ({"regions": [{"box": [-1, 0, 5, 5], "prompt": "a"}]}, ["regions[0].box", "not inside"]),
        ({"regions": [{"boxes": 1}]}, ["boxes: unknown option; did you mean 'box'?", "prompt: missing"]),
        ({"regions": [{"prompt": "a", "colour": None}]}, ["regions[0]: expected one of box, polygon, mask"]),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1], "mask": "m.png"}]}, ["one shape, found box and mask"]),
        ({"regions": [{"prompt": "a", "polygon": [[0, 0], [1, 1]]}]}, ["polygon: expected at least 3 corners"]),
        ({"regions": [{"prompt": "a", "polygon": [[0, 0], [1, 1], [0.5, 0.5]]}]}, ["polygon: its 3 corners have no"]),
        ({"regions": [{"prompt": "a", "polygon": [[0, 0], [9, 9], [0, 70]]}]}, ["corner [0, 70] is not inside"]),
        ({"regions": [{"prompt": "a", "mask": "nowhere.png"}]}, ["regions[0].mask: nowhere.png: no such picture"]),
        ({"regions": [{"prompt": "a", "colour": "red"}]}, ["regions[0].colour", "in 'masks', found none"]),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1], "start": 0.5, "end": 0.5}]}, ["start, end: expected"]),
        ({"regions": [{"prompt": "a", "box": [0, 0, 1, 1], "guidance": 0.5}]}, ["regions[0].guidance: expected 1"]),
        ({"region_schedule": [[0, 1.5]]}, ["region_schedule: expected pairs such as"]),
        ({"region_schedule": [[0, 1], [0, 0.5]]}, ["region_schedule: expected one factor for each part"]),
        ({"regions": [], "base_prompt": "a", "common_prompt": "b"}, ["base_prompt: expected regions", "common_prom"]),
        ({"base_prompt": "a <pop1>", "background_prompt": "a <pop2>"}, ["<pop1> is no", "<pop2> is no"]),
        ({"common_prompt": "a <pop1>", "common_negative": "a <pop2>"}, ["<pop1> is no", "<pop2> is no"]),
        ({"masks": "nowhere.png"}, ["masks: expected regions that name a 'colour'"]),
        ({"layout": "1,2,1"}, ["regions[0].box: expected no shape beside the scene's layout '1,2,1'"]),
        ({"layout": "1,1; 1", "regions": [{"prompt": "a"}]}, ["as many cells as regions (1), found 3"]),
        ({"layout": "1,,1", "regions": [{"prompt": "a"}]}, ["layout: row 1: expected widths above 0", "'1,,1'"]),
        ({"layout": "1", "regions": []}, ["layout: expected regions for the cells"]),
        (
            {"regions": [{"box": [0, 0, 1, 1], "prompt": "a", "feather": 4}], "edges": "hard"},
            ["regions[0].feather: expected edges: soft"],
        ),
        (
            {"regions": [{"box": [0, 0, 1, 1], "prompt": "a", "priority": 1}, {"box": [0, 0, 0.5, 1], "prompt": "b"}]},
            ["regions[1]: lies wholly under regions of higher priority"],
        ),
        ({"rewrite": "[a]-*-[]-*-[1, 2", "regions": []}, ["rewrite, column"]),
        ({"rewrite": "[a]-*-[]-*-[0, 0, 1, 1]"}, ["regions from one place"]),
        ({"layout": "nowhere.txt", "regions": []}, ["nowhere.txt"]),
        ({"prompt": "a <pop1>"}, ["<pop1> is no concept token", "known: none"]),
        ({"size": [100, 60]}, ["width: expected a multiple of 64", "height: expected a multiple of 64"]),
        ({"size": None}, ["size: expected [width, height]"]),
        ({"pose": {"people": []}}, ["pose.people: expected at least one person"]),
        ({"pose": {"people": [[[1, 2]]]}}, ["pose: people[0]: expected 18 key points, found 1"]),
        ({"pose": {"people": [[[900, 900]] * 18]}}, ["pose: people", "inside the picture of 128x64"]),
        ({"pose": {}}, ["expected one of image, json, people and photo, found none"]),
        ({"pose": {"json": "nowhere.json"}}, ["pose: nowhere.json"]),
        ({"pose": {"image": "nowhere.png"}}, ["pose: nowhere.png: no such picture"]),
        ({"pose": {"png": "AAAA"}}, ["pose: "]),
        ({"pose": {"people": [PERSON], "adapter": "./nowhere"}}, ["pose.adapter", "no such folder"]),
        ({"model": "./nowhere", "concepts": ["lost.pth"]}, ["model: ", "concepts[0]: lost.pth: no such"]),
        ({"scheduler": "DPMSolverMultistop"}, ["scheduler", "did you mean 'DPMSolverMultistepScheduler'"]),
        ({"steps": 0, "seeds": [], "output": "a.jpg"}, ["steps: ", "seeds: ", "output: "]),
        ({"device": "abacus"}, ["device: expected"]),
    ],
)  # fmt: skip
def test_bad_input(
    compose: Callable[..., int],
    scene: dict,
    tmp_path: Path,
    change: dict,
    messages: list[str],
    capsys: pytest.CaptureFixture,
) -> None:
    assert compose(scene | change) == 2
    said = capsys.readouterr().err
    for message in messages:
        assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*.p*"))  # no picture, nothing partial


def test_a_black_or_broken_pose_picture(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pose = tmp_path / "pose.png"
    Image.new("RGB", (128, 64)).save(pose)
    scene["pose"] = {"image": str(pose), "adapter": scene["pose"]["adapter"]}
    assert compose(scene) == 2
    assert "at least one person" in capsys.readouterr().err
    pose.write_bytes(pose.read_bytes()[:40])
    assert compose(scene) == 2
    assert "truncated" in capsys.readouterr().err


def test_pictures_without_a_scene_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert main(["compose", str(picture)]) == 2
    assert "no scene in its metadata" in capsys.readouterr().err


def test_sample_with_a_concept_file(tiny: Base, tiny_folder: Path, tmp_path: Path) -> None:
    concept = tmp_path / "pip.safetensors"
    save_concept(tiny_concept(tiny, "pip"), concept)
    command = ["sample", "a <pip1> <pip2>", "steps=2", "--model", str(tiny_folder), "--concept", str(concept)]
    assert main([*command, "--seeds", "0-1", "--out", str(tmp_path / "a.png")]) == 0
    assert main([*command, "--strength", "0", "--out", str(tmp_path / "b.png")]) == 0
    assert (tmp_path / "a_grid.png").is_file()
    assert not same(tmp_path / "a_seed0.png", tmp_path / "b.png")
    assert main(["compose", str(tmp_path / "a_seed0.png")]) == 0
    assert same(tmp_path / "a_seed0.png", tmp_path / "a_seed0_again.png")


def test_sample_s_mistakes(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["sample", "a <pip1>", "--model", str(tiny_folder), "--out", str(tmp_path / "a.png")]
    assert main([*command, "--seeds", "3-x"]) == 2
    assert main([*command, "--strength", "1"]) == 2
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "--seeds" in said and "strengths: expected one per concept" in said and "<pip1> is no concept token" in said


@pytest.fixture(scope="module")
def network_files(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A strong LoKr on the attention of both models, and DoRA with alpha != rank on some of the UNet's layers."""
    folder = tmp_path_factory.mktemp("networks")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for name, settings in {
        "one": {"algo": "lokr", "preset": "attn-only", "factor": 4, "dim": 2},
        "two=2": {"preset": "unet-transformer-only", "dim": 2, "alpha": 3.0, "weight_decompose": True},
    }.items():
        network = create_network(tiny.models, generator=generator, **settings)
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        paths.append(folder / f"{name}.safetensors")
        network.save(paths[-1])
    return paths


def difference(first: Path, second: Path) -> int:
    pictures = [np.asarray(Image.open(path)).astype(int) for path in (first, second)]
    return int(np.abs(pictures[0] - pictures[1]).max())


def test_sample_with_networks(tiny: Base, tiny_folder: Path, network_files: list[Path], tmp_path: Path) -> None:
    save_concept(tiny_concept(tiny, "pip"), tmp_path / "pip.safetensors")
    first, second = network_files
    command = ["sample", "a <pip1> <pip2>", "steps=2", "precision=fp32", "--model", str(tiny_folder)]
    command += ["--concept", str(tmp_path / "pip.safetensors")]
    both = ["--network", f"{first}=0.8", "--network", str(second)]

    def picture(name: str, *arguments: str) -> Path:
        assert main([*command, *arguments, "--out", str(tmp_path / name)]) == 0
        return tmp_path / name

    plain, attached, merged = picture("plain.png"), picture("both.png", *both), picture("merged.png", *both, "--merge")
    alone = picture("alone.png", "--network", f"{first}=0.8", "--network", f"{second}=0")
    assert difference(plain, alone) > 8 and difference(alone, attached) > 8
    assert difference(attached, merged) <= 1  # sums in another order
    about = read_about(merged)["scene"]
    assert about["merge_networks"] and [entry["strength"] for entry in about["networks"]] == [0.8, 1.0]
    assert main(["compose", str(merged)]) == 0
    assert same(merged, tmp_path / "merged_again.png")


def test_networks_that_do_not_fit_are_all_named(
    tiny: Base, tiny_folder: Path, network_files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["sample", "a boy", "--model", str(tiny_folder), "--out", str(tmp_path / "a.png")]
    assert main([*command, "--network", "nowhere.safetensors=0.5", "--network", "lost.safetensors"]) == 2
    said = capsys.readouterr().err
    assert "networks[0].file: no such network file: nowhere.safetensors\n" in said and "networks[1].file" in said
    assert main([*command, "--network", f"{network_files[0]}=much"]) == 2
    assert "expected FILE or FILE=STRENGTH" in capsys.readouterr().err
    assert main([*command, "--network", f"{network_files[0]}=nan"]) == 2
    assert "networks[0].strength: expected a number" in capsys.readouterr().err
    write_safetensors(tmp_path / "other.safetensors", {"lora_unet_gone.diff": torch.zeros(1)})
    save_concept(Concept({"<a>": torch.zeros(1, 1)}, {}), tmp_path / "bare.safetensors")
    assert main([*command, *(f"--network={tmp_path / name}.safetensors" for name in ("other", "bare"))]) == 2
    said = capsys.readouterr().err
    assert "networks[0]: " in said and "'lora_unet_gone' names no module" in said
    assert "networks[1]: " in said and "found none" in said
    assert not list(tmp_path.glob("*.png"))


def test_networks_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_network("a.safetensors") == {"file": "a.safetensors"}
    assert parse_network("rate=3/a.safetensors=-0.5") == {"file": "rate=3/a.safetensors", "strength": -0.5}
    (tmp_path / "b=best.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    assert parse_network("b=best.safetensors") == {"file": "b=best.safetensors"}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("mixshow.recipes.compose.load_base", fail)
    monkeypatch.setattr("mixshow.recipes.conditions.load_adapter", fail)


@pytest.mark.usefixtures("no_model")
def test_a_scene_is_checked_without_its_model(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert compose(scene, "--check") == 0
    assert "nothing found to be wrong" in capsys.readouterr().err
    scene |= {"size": [100, 64], "prompt": "a <pop1>"}
    assert compose(scene, "--check") == 2
    said = capsys.readouterr().err
    assert "width: expected a multiple of 64" in said and "<pop1> is no concept token" in said
    wrong = {"device": "abacus", "scheduler": "DDIM", "scheduler_options": {"eta_max": 1}, "concepts": ["lost.pth"]}
    assert compose(scene | wrong, "--check") == 2
    said = capsys.readouterr().err
    assert "device: expected" in said and "'eta_max'" in said and "concepts[0]: lost.pth" in said
    assert [path.name for path in tmp_path.iterdir()] == ["scene.yml"]


@pytest.mark.usefixtures("no_model")
def test_concept_tokens_are_checked_without_the_model(
    tiny: Base, compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    save_concept(tiny_concept(tiny, "pip"), tmp_path / "pip.safetensors")
    scene |= {"concepts": [str(tmp_path / "pip.safetensors")], "prompt": "a <pip1> <pip2>"}
    assert compose(scene, "--check") == 0
    assert compose(scene, "--check", "prompt=a <pip3>") == 2
    assert "<pip3> is no concept token of model" in capsys.readouterr().err


@pytest.mark.usefixtures("no_model")
def test_a_preview_needs_no_model(
    compose: Callable[..., int], scene: dict, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    scene["model"] = "./nowhere"
    assert compose(scene, "--preview") == 0
    assert Image.open(tmp_path / "scene_preview.png").width == 512
    assert compose({"prompt": "a boy", "output": scene["output"]}, "--preview") == 2
    assert "found nothing to preview" in capsys.readouterr().err
    scene["regions"][0]["box"] = [0, 0, 900, 9]
    assert compose(scene, "--preview") == 2
    assert "regions[0].box" in capsys.readouterr().err


def test_seed_ranges_make_a_picture_each(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    assert compose(scene, "seeds=2-4", "steps=1") == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"scene_seed{seed}.png" for seed in (2, 3, 4)]
    assert compose(scene | {"seeds": [7, "9-9"]}, "steps=1") == 0
    assert read_about(tmp_path / "scene_seed9.png")["scene"]["seeds"] == [9]
    assert compose(scene, "seeds=4-2") == 2
    assert compose(scene, "seeds=[1,1]") == 2


def test_seed_lists() -> None:
    assert parse_seeds("1, 5,7-9") == [1, 5, 7, 8, 9]
    assert parse_seeds(3) == [3]
    assert parse_seeds([4, "0-2"]) == [4, 0, 1, 2]
    with pytest.raises(MixshowError):
        parse_seeds("5-3")


def test_grids_have_room_for_every_picture() -> None:
    images = [Image.new("RGB", (40, 20), (i, 0, 0)) for i in range(5)]
    grid = picture_grid(images, 3, ["a label that is much too long"] * 5)
    assert grid.width == 3 * 44 + 4
    places = [(4 + 44 * (i % 3) + 20, grid.height * (1 + 2 * (i // 3)) // 4 + 8) for i in range(5)]
    assert [grid.getpixel(place)[0] for place in places] == list(range(5))
    assert picture_grid(images[:1], 3).size == (48, 28)


def test_every_options_file_runs(
    tiny: Base, tiny_folder: Path, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(OPTIONS.glob("*.yml"))
    assert len(files) >= 5
    (tmp_path / "options").symlink_to(OPTIONS.parent)
    (tmp_path / "data" / "poses").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for file in files:
        options = yaml.safe_load(file.read_text())
        Image.new("RGB", options["size"], "white").save(tmp_path / "data" / "poses" / "three.png")
        named = [region.get("concept") or re.findall(r"<(\w+)1>", region["prompt"]) for region in options["regions"]]
        names = [name for found in named for name in ([found] if isinstance(found, str) else found)]
        concepts = []
        for name in names:
            concepts.append(tmp_path / f"{name}.safetensors")
            save_concept(tiny_concept(tiny, name, seed=derived_seed(0, name)), concepts[-1])
        overrides = [
            f"model={tiny_folder}", f"concepts=[{','.join(map(str, concepts))}]",
            *([f"pose.adapter={adapter_folder}"] if "pose" in options else []),
            "steps=1", "seeds=[0]", "output=out.png",
        ]  # fmt: skip
        assert main(["compose", str(file), *overrides]) == 0
        scale = options.get("hires", {}).get("scale", 1)
        assert Image.open(tmp_path / "out.png").size == tuple(side * scale for side in options["size"])


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 2)])
def test_ctrl_c_and_a_full_disk_leave_nothing_half_written(
    scene: dict,
    compose: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    assert compose(scene) == status
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["scene.yml"]
