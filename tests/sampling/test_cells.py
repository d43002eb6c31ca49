from __future__ import annotations

import pytest

from mixshow.core.errors import MixshowError
from mixshow.sampling.cells import parse_cells


def test_rows_and_columns() -> None:
    assert parse_cells("1,2,1; 1") == [
        (0.0, 0.0, 0.25, 0.5), (0.25, 0.0, 0.75, 0.5), (0.75, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0),
    ]  # fmt: skip
    assert parse_cells(" 3 : 1 , 1 ; 1 ") == [(0.0, 0.0, 0.5, 0.75), (0.5, 0.0, 1.0, 0.75), (0.0, 0.75, 1.0, 1.0)]
    assert parse_cells("1") == [(0.0, 0.0, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("text", "row"), [("1;;1", 2), ("1,", 1), ("0,1", 1), ("1; 0: 1", 2), ("1.2.3", 1), ("1:2:3", 1), ("", 1)]
)
def test_other_texts_are_explained(text: str, row: int) -> None:
    with pytest.raises(MixshowError, match=f"row {row}: expected widths above 0"):
        parse_cells(text)
