"""`mixshow lycoris` shows algorithms, options and what a preset would change."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixshow.cli.main import main
from mixshow.lycoris.presets import PRESETS
from mixshow.lycoris.registry import ALGORITHMS


def rows(text: str) -> dict[str, list[str]]:
    """A printed table's cells by the first two cells of a row."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {" ".join(row[:2]).strip(): row[2:] for row in cells}


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lycoris", "list"]) == 0
    out = capsys.readouterr().out
    assert all(f"| {name} |" in out for name in (*ALGORITHMS, *PRESETS))


@pytest.mark.parametrize("algo", sorted(ALGORITHMS))
def test_describe(algo: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lycoris", "describe", algo]) == 0
    out = capsys.readouterr().out
    assert all(f"| {option} |" in out for option in (*ALGORITHMS[algo].options, "rank_dropout"))


def test_match(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lycoris", "match", str(tiny_folder), "--preset", "attn-only", "--dim", "2"]) == 0
    found = rows(capsys.readouterr().out)
    # 2 layers of width 16 with 4 projections; 32 attention layers with 4.
    assert found["text_encoder locon"] == ["8", "8", "0", "0", "0", "2,048", "512", "25.00%"]
    assert found["unet locon"][:5] == ["128", "128", "0", "0", "0"]
    assert found["all"][0] == "136"


def test_match_by_block(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lycoris", "match", str(tiny_folder), "--preset", "attn-only", "--dim", "2", "--blocks"]) == 0
    found = rows(capsys.readouterr().out)
    assert found["1 input_blocks.1"][0] == found["12 middle_block"][0] == found["24 output_blocks.11"][0] == "8"
    assert "3 input_blocks.3" not in found  # a downsampler has no attention
    assert found["none"][:2] == ["8", "8"] and found["all"][0] == "136"


def test_match_of_an_own_preset(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = tmp_path / "own.yml"
    preset.write_text(
        "unet_target_module: [ResnetBlock2D]\n"
        "exclude_name: ['.*time_emb_proj', '.*conv_shortcut']\n"
        "name_algo_map: {mid_block: {algo: lora, dim: 1}}\n"
    )
    command = ["lycoris", "match", str(tiny_folder), "--preset", str(preset), "--conv-dim", "3", "--names"]
    assert main([*command, "--option", "use_tucker=true"]) == 0
    found = rows(capsys.readouterr().out)
    assert len(found) == 22 * 2 + 2
    first = next(row for name, row in found.items() if "down_blocks_0_resnets_0_conv1" in name)
    assert int(first[-1]) == 16 * 3 + 3 * 3 * 9 + 3 * 16
    middle = next(row for name, row in found.items() if "mid_block_resnets_0_conv1" in name)
    assert int(middle[-1]) == 24 + 9 + 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "lokk"], "algorithm 'lokk': unknown; did you mean 'lokr'?"),
        (["match", "puppets", "--preset", "attn"], "preset 'attn': unknown"),
        (["match", "puppets", "--option", "factor"], "expected key=value"),
        (["match", "no/such/folder"], "no such folder"),
        (["match", "puppets", "--algo", "locon", "--option", "constraint=1"], "no option 'constraint'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lycoris", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
