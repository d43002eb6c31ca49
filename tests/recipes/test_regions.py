"""Scenes whose regions are kept apart, have networks of their own, or are found: through the command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixshow.cli.main import main
from mixshow.edlora.concept import save_concept
from mixshow.lycoris import create_network
from mixshow.models import Base
from mixshow.sampling.pictures import read_about
from tests.tiny import tiny_concept

PIP, LUMA = "a photo of <pip1> <pip2>", "a photo of <luma1> <luma2>"


@pytest.fixture
def scene(tiny: Base, tiny_folder: Path, tmp_path: Path) -> dict:
    for seed, name in enumerate(("pip", "luma")):
        save_concept(tiny_concept(tiny, name, seed=seed, strength=0.5), tmp_path / f"{name}.safetensors")
    return {
        "model": str(tiny_folder),
        "size": [128, 64],
        "prompt": "<pip1> <pip2> , <luma1> <luma2> at the beach",
        "concepts": [str(tmp_path / "pip.safetensors"), str(tmp_path / "luma.safetensors")],
        "regions": [
            {"box": [0, 0, 0.5, 1], "prompt": PIP, "base_ratio": 0.3},
            {"box": [0.5, 0, 1, 1], "prompt": LUMA, "base_ratio": 0.3},
        ],
        "steps": 3,
        "output": str(tmp_path / "scene.png"),
    }


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def network_file(base: Base, path: Path) -> Path:
    network = create_network(base.models, preset="unet-transformer-only", dim=2)
    for adapter in network.adapters.values():
        adapter.up.data = torch.randn(adapter.up.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    network.save(path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"isolate": {"end": 0.5}},
        {"guard": True},
        {"concept_networks": "regions"},
        {"regions": [{"from": "attention", "after": 1, "prompt": text} for text in (PIP, LUMA)]},
    ],
)
def test_each_changes_the_picture_and_is_made_again_from_it(
    compose: Callable[..., int], scene: dict, tmp_path: Path, change: dict
) -> None:
    assert compose(scene) == 0
    plain = pixels(tmp_path / "scene.png")
    assert compose(scene | change) == 0
    assert not np.array_equal(plain, pixels(tmp_path / "scene.png"))
    about = read_about(tmp_path / "scene.png")["scene"]
    for name in change.keys() - {"regions"}:
        assert about[name] == (change[name] if name != "isolate" else {"start": 0.0, "end": 0.5, "strength": 1.0})
    assert [region["from"] for region in about["regions"]] == ["attention" if "regions" in change else None] * 2
    assert main(["compose", str(tmp_path / "scene.png")]) == 0
    assert np.array_equal(pixels(tmp_path / "scene.png"), pixels(tmp_path / "scene_again.png"))


def test_a_region_s_network(tiny: Base, compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    assert compose(scene) == 0
    plain = (tmp_path / "scene.png").rename(tmp_path / "plain.png")
    file = network_file(tiny, tmp_path / "style.safetensors")
    scene["regions"][0]["network"] = {"file": str(file)}
    assert compose(scene) == 0
    assert not np.array_equal(pixels(plain), pixels(tmp_path / "scene.png"))
    scene["regions"][0]["network"]["strength"] = 0
    assert compose(scene) == 0
    assert np.array_equal(pixels(plain), pixels(tmp_path / "scene.png"))


def test_a_concept_directed_to_a_region_over_everything_is_attached(
    compose: Callable[..., int], scene: dict, tmp_path: Path
) -> None:
    scene |= {"concepts": scene["concepts"][:1], "prompt": "a dog", "guidance": 1.5, "precision": "fp32"}
    scene["regions"] = [{"box": [0, 0, 1, 1], "prompt": "a {concept}", "concept": "pip"}]
    assert compose(scene) == 0
    everywhere = (tmp_path / "scene.png").rename(tmp_path / "everywhere.png")
    assert compose(scene, "concept_networks=regions") == 0
    assert np.abs(pixels(everywhere) - pixels(tmp_path / "scene.png")).max() <= 1
    assert compose(scene, "concept_networks=regions", "strengths=[0.0]") == 0
    assert np.abs(pixels(everywhere) - pixels(tmp_path / "scene.png")).max() > 1


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        ({"isolate": {"start": 0.5, "end": 0.2, "strength": 2}}, ["isolate.start, end: expected", "isolate.strength"]),
        ({"isolate": {}, "guard": True, "regions": []}, ["isolate: expected regions", "guard: expected regions"]),
        ({"concept_networks": "regions", "concepts": []}, ["concept_networks: expected 'concepts' and regions"]),
        (
            {"regions": [{"box": [0, 0, 1, 1], "prompt": "a", "network": {"file": "nowhere.safetensors"}}]},
            ["regions[0].network.file: no such network file: nowhere.safetensors"],
        ),
        (
            {"regions": [{"from": "attention", "prompt": PIP, "box": [0, 0, 1, 1], "threshold": 1, "after": 0}]},
            ["one shape, found box and from", "threshold: expected a number between 0 and 1", "after: expected 1 step"],
        ),
        (
            {"regions": [{"from": "attention", "prompt": PIP, "guidance": 3}]},
            ["from: expected no seed_offset, guidance or condition_weights"],
        ),
        (
            {"regions": [{"from": "attention", "prompt": PIP, "after": 9}]},
            ["an 'after' below the 3 steps of the scene, found 9"],
        ),
        (
            {"regions": [{"from": "attention", "prompt": PIP, "after": 1}], "background_prompt": "a dog"},
            ["regions[0].from: expected <pip1> <pip2> in the scene's prompt"],
        ),
        (
            {"regions": [{"from": "attention", "prompt": text, "after": n} for n, text in ((1, PIP), (2, "a boy"))]},
            ["expected one number of steps in the 'after' of all regions, found [1, 2]"],
        ),
        (
            {"regions": [{"from": "attention", "prompt": "a boy", "after": 1}]},
            ["regions[0].from: expected a concept in its prompt"],
        ),
    ],
)
def test_bad_input_is_named_before_anything_is_loaded(
    compose: Callable[..., int], scene: dict, change: dict, messages: list[str], capsys: pytest.CaptureFixture
) -> None:
    assert compose(scene | change, "--check") == 2
    said = capsys.readouterr().err
    for message in messages:
        assert message in said
    assert "Traceback" not in said


def test_a_network_of_another_base_is_named(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    scene["regions"][1]["network"] = {"file": scene["concepts"][0].replace("pip", "broken")}
    Path(scene["regions"][1]["network"]["file"]).write_bytes(b"no network")
    assert compose(scene) == 2
    assert not (tmp_path / "scene.png").exists()


def test_a_preview_shows_the_regions_that_are_known(compose: Callable[..., int], scene: dict, tmp_path: Path) -> None:
    scene["regions"][0] = {"from": "attention", "prompt": PIP, "after": 1}
    assert compose(scene, "--preview") == 0
    assert (tmp_path / "scene_preview.png").is_file()
