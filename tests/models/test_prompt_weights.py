from __future__ import annotations

import pytest

from mixshow.core.errors import MixshowError
from mixshow.models.prompt_weights import Words, parse_weights, weights_problem


def weighed(prompt: str) -> list[tuple[str, float]]:
    (words,) = parse_weights(prompt)
    return [(word.text, round(word.weight, 6)) for word in words]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a dog", [("a dog", 1)]),
        ("", []),
        ("a (red) hat", [("a ", 1), ("red", 1.1), (" hat", 1)]),
        ("a [red] hat", [("a ", 1), ("red", 0.909091), (" hat", 1)]),
        ("(a (red:1.5) hat)", [("a ", 1.1), ("red", 1.65), (" hat", 1.1)]),
        ("((red))", [("red", 1.21)]),
        ("(red: 0.5 )", [("red", 0.5)]),
        ("(red:-.5)", [("red", -0.5)]),
        (r"saber \(fate\) \[x\] \\", [("saber (fate) [x] \\", 1)]),
        (r"(saber \(fate\):1.2)", [("saber (fate)", 1.2)]),
        (r"red \(boy:1.6\)", [("red (boy:1.6)", 1)]),
        ("time: noon, 16:9", [("time: noon, 16:9", 1)]),
        ("a <pip1> (<pip2>:1.2)", [("a <pip1> ", 1), ("<pip2>", 1.2)]),
    ],
)
def test_grammar(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert weighed(prompt) == expected


def test_break_parts_a_prompt_also_inside_brackets() -> None:
    parts = parse_weights("a dog BREAK (a hat BREAK red:2) BREAKFAST")
    assert [[(word.text, word.weight) for word in words] for words in parts] == [
        [("a dog ", 1.0)],
        [(" ", 1.0), ("a hat ", 2.0)],
        [(" red", 2.0), (" BREAKFAST", 1.0)],
    ]


@pytest.mark.parametrize(
    ("prompt", "column", "expected"),
    [
        ("a (red hat", 3, "its partner behind it"),
        ("a red) hat", 6, "'(' before it"),
        ("a [red) hat", 7, "'(' before it"),
        ("a (red] hat", 7, "'[' before it"),
        ("a (red:much) hat", 7, "a weight such as"),
        ("a (red:inf) hat", 7, "a weight such as"),
        ("a [red:1.3] hat)", 16, "'(' before it"),
    ],
)
def test_mistakes_are_named_with_their_column(prompt: str, column: int, expected: str) -> None:
    with pytest.raises(MixshowError, match="prompt_weights: false") as caught:
        parse_weights(prompt)
    assert f"column {column}: expected {expected}" in str(caught.value)
    assert weights_problem(prompt) == str(caught.value)


def test_words_of_one_weight_stay_together() -> None:
    assert parse_weights(r"a \(b\) c") == [[Words("a (b) c")]]
