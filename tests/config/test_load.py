"""All problems of an options file come together, each naming its place."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path

import pytest

from mixshow.config import Section, build, dump, load, option
from mixshow.core.errors import MixshowError, OptionsError


class Mode(Enum):
    FAST = "fast"
    GOOD = "good"


@dataclasses.dataclass(frozen=True)
class Part(Section):
    rank: int = option("rank", 4)
    rate: float = option("learning rate", 1e-4)
    mode: Mode = option("mode", Mode.GOOD)

    def problems(self) -> list[str]:
        return ["rank: must be at least 1"] if self.rank < 1 else []


@dataclasses.dataclass(frozen=True)
class Options(Section):
    output: Path = option("where to write")
    part: Part = option("a part", factory=Part)
    parts: list[Part] = option("parts", factory=list)
    box: tuple[float, float] | None = option("a box", None)
    flag: bool = option("a flag", False)


def problems_of(contents: dict) -> str:  # type: ignore[type-arg]
    with pytest.raises(OptionsError) as error:
        build(Options, contents, "a.yml")
    return str(error.value)


def test_values_and_defaults() -> None:
    options = build(Options, {"output": "x", "part": {"rate": "1e-3", "mode": "fast"}, "box": [1, 2.5]})
    assert options == Options(Path("x"), Part(rate=1e-3, mode=Mode.FAST), [], (1.0, 2.5))


def test_all_problems_are_reported_together() -> None:
    text = problems_of(
        {"part": {"rnk": 1, "rate": "quick", "mode": "best"}, "parts": [{"rank": 0}, 3], "box": [1], "flag": "yes"}
    )
    for expected in (
        "a.yml: output: missing; where to write",
        "part.rnk: unknown option; did you mean 'rank'?",
        "part.rate: expected a number, found a text ('quick')",
        "part.mode: expected one of fast, good",
        "parts[0].rank: must be at least 1",
        "parts[1]: expected a mapping, found a whole number (3)",
        "box: expected 2 values, found 1",
        "flag: expected true or false, found a text ('yes')",
    ):
        assert expected in text


def test_true_is_no_number() -> None:
    assert "part.rank: expected a whole number" in problems_of({"output": "x", "part": {"rank": True}})


def test_overrides_and_written_options(tmp_path: Path) -> None:
    path = tmp_path / "a.yml"
    path.write_text("output: out\npart: {rank: 2}\n")
    options = load(Options, path, ["part.rank=8", "flag=true"])
    assert (options.part.rank, options.flag) == (8, True)
    dump(options, tmp_path / "b.yml")
    assert load(Options, tmp_path / "b.yml") == options


@pytest.mark.parametrize("text", ["part.rank", "=3"])
def test_an_override_needs_key_and_value(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yml").write_text("output: out\n")
    with pytest.raises(MixshowError, match="expected key=value"):
        load(Options, tmp_path / "a.yml", [text])


def test_an_override_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("output: out\n")
    with pytest.raises(
        MixshowError, match=r"override 'parts=\[\{rank:2,box:\[0': not valid YAML: .*space behind"
    ) as error:
        load(Options, tmp_path / "a.yml", ["parts=[{rank:2,box:[0"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("contents", [b"a: [1, 2", b"- 1\n- 2\n", b"\xff\xfe\x00", b"a: b: c"])
def test_what_is_no_yaml_mapping_is_one_line(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "a.yml"
    path.write_bytes(contents)
    with pytest.raises(MixshowError) as error:
        load(Options, path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(MixshowError, match=r"gone\.yml: no such options file"):
        load(Options, "gone.yml")


def test_overrides_reach_into_lists(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("output: x\nparts: [{rank: 1}, {rank: 2}]\n")
    assert [part.rank for part in load(Options, tmp_path / "a.yml", ["parts[1].rank=7"]).parts] == [1, 7]


@pytest.mark.parametrize("text", ["parts[2].rank=7", "parts.rank=7", "parts[x].rank=7"])
def test_an_override_beside_a_list_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.yml").write_text("output: x\nparts: [{rank: 1}, {rank: 2}]\n")
    with pytest.raises(MixshowError, match=r"override 'parts.*by their number from 0"):
        load(Options, tmp_path / "a.yml", [text])
