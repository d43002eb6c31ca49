"""The benchmark's table: pairs, ratios to averaging, and differences that seeds explain."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fusion_table_report import report
from benchmarks.fusion_table_runs import METHODS, OURS, Table
from mixshow.config.fuse import load_fuse_options
from mixshow.config.load import dump
from mixshow.core.files import write_json
from mixshow.recipes.demo_options import fuse_options

SINGLE = [True, True, True, False]


def done(table: Table, method: str, seed: int, hits: list[bool], errors: list[float], drift: float) -> None:
    """Write down a run of two characters that did alike."""
    found = {key: dict.fromkeys(table.cast, hits) for key in ("identity", "place")}
    held_out = {"errors": dict(zip(table.cast, errors)), "drift": drift}
    write_json(table.fused_file(method, 2, seed), {**found, "held_out": held_out})
    for name in table.cast:
        own = {key: {name: SINGLE} for key in ("identity", "place")}
        write_json(table.single_file(name, seed), own)


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, list[str]]:
    table = Table(tmp_path, ["pip", "luma"], [2], [0, 1], list(METHODS), 4, 4, None, [])
    for seed in table.seeds:
        done(table, OURS, seed, SINGLE, [0.2, 0.4], 0.05)
        done(table, "average", seed, [True, False, False, False], [0.6, 0.6], 0.04)
    done(table, "sum", 0, [True, True, True, True], [1.0, 1.0], 0.1)
    done(table, "sum", 1, [True, False, False, True], [1.0, 1.0], 0.1)
    lines = [line.strip("| ").split(" | ") for line in report(table).splitlines() if line.startswith("| ")]
    return {line[0]: line for line in lines}


def test_what_is_done_is_in_the_table(rows: dict[str, list[str]]) -> None:
    assert list(rows) == ["fused by", OURS, "sum", "average"]
    header = rows["fused by"]
    ours, average, summed = (dict(zip(header, rows[name])) for name in (OURS, "average", "sum"))
    assert ours["identity, single -> fused (95 %)"].startswith("75.0 % -> 75.0 % (")
    assert ours["change"].startswith("+0.0 (") and average["change"].startswith("-50.0 (")
    assert summed["seeds"] == "-25.0..+25.0" and average["seeds"] == "-50.0..-50.0"
    assert ours["E"] == "0.30 (0.20..0.40)" and ours["E ratio"] == "0.50" and average["E ratio"] == "1.00"
    assert ours["drift"] == "0.050" and ours["drift ratio"] == "1.25" and summed["drift ratio"] == "2.50"


def test_what_seeds_explain_is_marked(rows: dict[str, list[str]]) -> None:
    assert rows["average"][-1] == "+50.0 ± 0.0"
    assert rows["sum"][-1] == "~+0.0 ± 35.4"


@pytest.mark.parametrize("method", METHODS)
def test_every_way_is_one_of_mixshow_fuse(method: str, tmp_path: Path) -> None:
    dump(fuse_options([Path("a.safetensors"), Path("b.safetensors")], tmp_path / "out"), tmp_path / "fuse.yml")
    options = load_fuse_options(tmp_path / "fuse.yml", METHODS[method])
    assert options.method == ("solve" if method.startswith((OURS, "solve")) else method)
    assert (options.refine.method == "distill") == method.startswith(OURS)
    assert (options.anchor.weight == 0) == method.endswith("no_anchor")
