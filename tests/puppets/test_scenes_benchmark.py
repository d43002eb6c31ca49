"""What the benchmark of scenes measures with: windows between characters, and scenes that are the same again."""

from __future__ import annotations

from itertools import pairwise

from benchmarks.compose_scenes import FEWEST, report, staged, windows_between
from mixshow.puppets.cast import CAST

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
