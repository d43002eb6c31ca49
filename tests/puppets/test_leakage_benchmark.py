"""The measures of benchmarks/leakage.py."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.leakage import report, result_file, seam
from mixshow.core.files import write_json
from mixshow.recipes.stage_plan import stage_scenes

BOXES = [(0, 0, 256, 512), (256, 64, 512, 512)]


def test_a_border_that_shows_is_a_seam() -> None:
    noise = np.random.default_rng(0).uniform(0, 50, (512, 1024, 3))
    assert seam(noise, BOXES, 8) == pytest.approx(1, abs=0.1)
    beside = noise.copy()
    beside[:, 256:] += 100  # the border between the two boxes
    above = noise.copy()
    above[:64] += 100  # the upper border of the second box
    elsewhere = noise.copy()
    elsewhere[:, 800:] += 100
    assert seam(beside, BOXES, 8) > 2
    assert seam(above, BOXES, 8) > 1.5
    assert seam(elsewhere, BOXES, 8) == seam(noise, BOXES, 8)
    assert seam(np.roll(beside, 1, axis=1), BOXES, 8) > 2  # a pixel beside it
    assert math.isnan(seam(noise, [(0, 0, 1024, 512)], 8))


def test_the_report_counts_what_was_seen(tmp_path: Path) -> None:
    scenes = stage_scenes(["pip", "luma", "rusty"], 2)
    expected = ["pip", "luma", "rusty"]
    for setting, seen in (("off", ["pip", "pip", "none"]), ("isolate to 0.4", ["none", "luma", "rusty"])):
        for staged in scenes:
            result = {"expected": expected, "seen": seen, "seams": [1.0]}
            write_json(result_file(tmp_path, setting, staged), result)
    table = report(scenes, ["off", "isolate to 0.4", "named"], tmp_path).splitlines()
    assert len(table) == 4  # nothing is done of the third
    assert "33.3 %" in table[2] and "0, 0" in table[2]
    assert "66.7 %" in table[3] and "| 4, 2 |" in table[3] and "0.0 %" in table[3]
