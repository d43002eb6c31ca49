"""`mixshow puppets cast|evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mixshow.cli.main import main
from mixshow.models.base import built_in_folder


def test_cast_writes_pictures_masks_and_captions(tmp_path: Path) -> None:
    assert main(["puppets", "cast", "pip", "moss", "--output", str(tmp_path), "--pictures", "2"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moss", "pip"]
    for name in ("pip", "moss"):
        image = Image.open(tmp_path / name / "image" / "00.png")
        mask = Image.open(tmp_path / name / "mask" / "00.png")
        assert image.size == mask.size == (128, 128)
        assert "<TOK>" in (tmp_path / name / "caption" / "00.txt").read_text()


def test_an_unknown_member_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["puppets", "cast", "pipp", "--output", str(tmp_path)]) == 2
    assert "did you mean 'pip'?" in capsys.readouterr().err
    assert main(["puppets", "cast", "--pictures", "0", "--output", str(tmp_path)]) == 2


@pytest.mark.slow
def test_the_shipped_weights_do_what_the_model_card_says(tmp_path: Path) -> None:
    if not built_in_folder().is_dir():
        pytest.skip("the built-in base's weights are not installed")
    assert main(["puppets", "evaluate", "--samples", "64", "--output", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["autoencoder_psnr_db"]["square"] >= 32 and report["autoencoder_psnr_db"]["wide"] >= 32
    assert report["judge"]["cast_right"]["value"] >= 0.97
    assert report["judge"]["near_miss_none"]["value"] >= 0.95
    assert report["pose"]["with_adapter"]["mean_percent_of_height"] <= 8
    # The bar of 90 % is met over 400 samples (docs/puppets.md); over 64 it must not be missed by more than the noise.
    for attribute in ("kind", "hair", "shirt", "trousers", "background"):
        assert report["prompts"][attribute]["interval_95"][1] >= 0.9
