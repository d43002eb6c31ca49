"""`mixshow sample`, and networks in it and in scenes, on a tiny random base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixshow.cli.main import main
from mixshow.cli.sample import parse_network
from mixshow.core.files import write_safetensors
from mixshow.edlora.concept import Concept, save_concept
from mixshow.lycoris import create_network
from mixshow.models import Base
from mixshow.sampling.pictures import read_about
from tests.sampling.scenes import same
from tests.tiny import tiny_concept


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
