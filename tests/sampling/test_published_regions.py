from __future__ import annotations

from pathlib import Path

import pytest

from mixshow.core.errors import MixshowError
from mixshow.sampling.published_regions import parse_regions, read_layout
from mixshow.sampling.regions import PixelBox, Region


def test_region_strings() -> None:
    text = "[a <duck1> <duck2>, [big], in the rain]-*-[low-*-res]-*-[10, 20, 120, 110]|[a fox]-*-[]-*-[0,100,128,240]"
    assert parse_regions(text) == [
        Region(PixelBox(20, 10, 110, 120), "a <duck1> <duck2>, [big], in the rain", "low-*-res"),
        Region(PixelBox(100, 0, 240, 128), "a fox", ""),
    ]
    assert parse_regions("") == []


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        ("a duck]-*-[]-*-[0, 0, 1, 1]", 1, r"'\['"),
        ("[a duck", 2, "a prompt that ends with"),
        ("[a duck]-*-()", 12, r"'\[' and a negative prompt"),
        ("[a]-*-[b]-*-[1, 2, x, 4]", 20, r"a whole number of pixels \(number 3 of 4\)"),
        ("[a]-*-[b]-*-[1, 2, 3]", 21, "',' in "),
        ("[a]-*-[b]-*-[1, 2, 3, 4, 5]", 24, r"'\]' in "),
        ("[a]-*-[b]-*-[1, 2, 3, 4] [c]", 26, r"'\|'"),
        ("[a]-*-[b]-*-[1, 2, 3, 4]|", 26, "another region"),
        ("[a]-*-[b]-*-[__import__('os')]", 14, "a whole number"),
    ],
)
def test_mistakes_name_the_column(text: str, column: int, expected: str) -> None:
    with pytest.raises(MixshowError, match=f"column {column}: expected {expected}"):
        parse_regions(text)


def test_every_published_layout_is_read(shared_fixtures: Path) -> None:
    layouts = sorted((shared_fixtures / "layouts").glob("*.txt"))
    assert len(layouts) == 5
    for layout in layouts:
        regions = read_layout(layout)
        assert len(regions) == (5 if "goku" in layout.name else 3)
        assert all(region.area.problem((1024, 512)) is None for region in regions)
    first = read_layout(layouts[0])[0]
    assert first == Region(PixelBox(51, 6, 293, 512), "<bengio1> <bengio2>", "")


def test_the_last_assignment_counts(shared_fixtures: Path) -> None:
    regions = read_layout(shared_fixtures / "layouts" / "hina_tezuka_mitsuha_goku_kaori.txt", negative_prompt="blurry")
    assert regions[3] == Region(PixelBox(615, 22, 793, 512), "a <son1> <son2>, near a lake", "blurry")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("char1='a'\nbox1=[1, 2, 3, 4]", "line 2 column 1: expected name='value'"),
        ("char1='a'", "found none"),
        ("box1='[1, 2, 3, 4]'", "box1 has no prompt"),
        ("char1='a' box1='[1, 2, 3'", "box1, column 9: expected"),
        ("char1=\"${who}\" box1='[1, 2, 3, 4]'", "uses .{who}"),
    ],
)
def test_mistakes_in_layouts_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "layout.txt"
    path.write_text(text)
    with pytest.raises(MixshowError, match=message):
        read_layout(path)
