"""Shares, PSNR and report pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from mixshow.evaluation.interval import PairedDifference, Share, share_of
from mixshow.evaluation.page import Page, markdown_table
from mixshow.evaluation.psnr import psnr


def test_wilson_interval_against_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662
    assert Share(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert Share(0, 20).interval[0] == 0.0 and Share(0, 20).interval[1] == pytest.approx(0.1611, abs=1e-4)


def test_share_of_outcomes() -> None:
    assert share_of([True, False, True, True]).value == 0.75


def test_psnr_of_a_known_error() -> None:
    torch.testing.assert_close(
        psnr(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.02)), torch.full((2,), 40.0).double()
    )


def test_paired_differences() -> None:
    found = PairedDifference.of([True, True, False, False, True], [True, False, True, True, True])
    assert found == PairedDifference(gained=2, lost=1, trials=5) and found.value == pytest.approx(0.2)
    mirrored = PairedDifference(1, 2, 5)
    assert mirrored.interval == pytest.approx([-end for end in found.interval[::-1]])
    # By hand, half a trial more in each cell of 5 and 8 among 100: -3 / 102 +- 1.96 sqrt(14 - 9 / 102) / 102
    assert PairedDifference(5, 8, 100).interval == pytest.approx((-0.10108, 0.04226), abs=2e-5)
    assert PairedDifference(0, 0, 100).interval[0] < 0 < PairedDifference(0, 0, 100).interval[1]
    with pytest.raises(ValueError, match="zip"):
        PairedDifference.of([True], [])


def test_a_page_is_one_file_with_escaped_text(tmp_path: Path) -> None:
    page = Page("a < b")
    page.table(["name", "n"], [["<pip1>", 3]])
    page.picture(Image.new("RGB", (4, 4)), "<pip1>")
    page.write(tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert "data:image/png;base64," in text and "&lt;pip1&gt;" in text and "<pip1>" not in text


def test_markdown_table() -> None:
    assert markdown_table(["a", "b"], [["x", 0.12345]]) == "| a | b |\n|---|---|\n| x | 0.123 |"
