"""What the benchmark of scenes measures with: windows between characters, and scenes that are the same again."""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import compose_scenes
from benchmarks.compose_scenes import FEWEST, WAYS, report, staged, windows_between
from mixshow.models import Base
from mixshow.puppets.cast import CAST
from mixshow.sampling.regions import PixelBox
from mixshow.sampling.scene import Scene
from mixshow.sampling.sought import Sought

NAMES = list(CAST)[:5]


def test_scenes_are_the_same_again_and_some_boxes_overlap() -> None:
    first, again = (staged(7, NAMES, 5) for _ in range(2))
    assert first.boxes == again.boxes and first.cast == again.cast
    assert first.drawing.tobytes() == again.drawing.tobytes()
    scenes = [staged(number, NAMES, 5) for number in range(12)]
    assert {len(scene.cast) for scene in scenes} == set(range(FEWEST, 6))
    overlapping = [any(a[2] > b[0] for a, b in pairwise(scene.boxes)) for scene in scenes]
    assert any(overlapping) and not all(overlapping)
    assert not any(a[2] > b[0] + 1 for scene in scenes for a, b in pairwise(scene.parts))


def test_every_way_is_a_scene_that_reads(tiny: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    composed: dict[str, Scene] = {}
    concepts = {name: f"<{name}1> <{name}2>" for name in NAMES}
    arguments = argparse.Namespace(folder=Path("puppets"), set=[], each=[])
    for way in WAYS:

        def compose(base: Base, scene: Scene, way: str = way, **given: object) -> list[Image.Image]:
            composed[way] = scene
            return [Image.new("RGB", (8, 8))]

        monkeypatch.setattr(compose_scenes, "compose", compose)
        monkeypatch.setattr(compose_scenes, "load_adapter", lambda *given: None)
        compose_scenes.composed(tiny, staged(5, NAMES, 5), way, concepts, arguments)
    assert not composed["plain prompt"].regions
    found, given = composed["from attention, guard"], composed["regions"]
    assert all(isinstance(region.area, Sought) for region in found.regions) and found.guard
    assert all(isinstance(region.area, PixelBox) for region in given.regions) and not given.guard
    assert [region.prompt for region in found.regions] == [region.prompt for region in given.regions]
    assert all(name in found.prompt for name in staged(5, NAMES, 5).cast)


def test_windows_lie_between_the_characters() -> None:
    parts = [(0, 20, 50, 128), (200, 20, 250, 128)]
    windows = windows_between(parts)
    assert windows and all(left >= 45 and right <= 205 for left, _, right, _ in windows)


def test_the_report_counts() -> None:
    record = {"way": "regions", "cast": ["pip", "luma"], "between": [], "seam": 1.0, "seconds": 1.0}
    records = [{**record, "seen": ["pip", "luma"]}, {**record, "seen": ["luma", "none"], "between": ["pip"]}]
    row = report(records).splitlines()[-1]
    assert "50.0 %" in row  # 2 of 4 right
    assert "75.0 %" in row  # 3 of them stand somewhere
    assert "40.0 %" in row  # of 4 parts and a window, one other member and one where nobody stands
