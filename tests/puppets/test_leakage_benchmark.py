"""The measures of benchmarks/leakage.py."""

from __future__ import annotations

from pathlib import Path

from benchmarks.leakage import report, result_file
from mixshow.core.files import write_json
from mixshow.recipes.stage_plan import stage_scenes


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
