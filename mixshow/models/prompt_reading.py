"""How prompts of scenes are read: with weights, in as many windows of the text encoder as they need.

Each window has a begin and an end token of its own; the windows' states stand one behind another along the token
axis, which cross-attention reads at any length.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mixshow.models.prompt_weights import Words, parse_weights
from mixshow.models.prompts import PromptStates, encoded_texts, prompt_ids, prompt_states

if TYPE_CHECKING:
    from mixshow.models.base import Base

_WORD = re.compile(r"<[^<>\s]+>(?:\s*<[^<>\s]+>)*|(?:(?!<[^<>\s]+>)\S)+")  # concept tokens in a row stay together
_LATE = 0.75  # of a window: a comma behind it is a good place to part a prompt


@dataclasses.dataclass(frozen=True)
class PromptReading:
    """How prompts are read.

    Attributes:
        weights: brackets weigh words and BREAK begins a window (`parse_weights`); otherwise they are text.
        windows: a prompt longer than the text encoder's window is read in several; otherwise it is cut.
        clip_skip: how many of the text encoders' last layers are left out, beyond what the base was trained with.
    """

    weights: bool = False
    windows: bool = False
    clip_skip: int = 0


@dataclasses.dataclass(frozen=True)
class Window:
    """What one window of the text encoder reads of a prompt.

    Attributes:
        text: concept tokens written as the vocabulary knows them.
        weights: one for each token of the text, begin and end token not counted; empty: all are 1.
    """

    text: str
    weights: tuple[float, ...] = ()


def prompt_windows(base: Base, prompt: str, reading: PromptReading) -> list[Window]:
    """The windows of a prompt, at least one.

    A prompt is parted at the last comma in a window's last quarter, or at its last word; never inside a word or a
    row of concept tokens. What alone is longer than a window is cut.

    Raises:
        MixshowError: a bracket without its partner.
    """
    parts = parse_weights(prompt) if reading.weights else [[Words(prompt)]]
    room = base.topology.max_tokens - base.tokenizer.num_special_tokens_to_add()
    windows = [window for part in parts for window in _filled(base, part, room, reading.windows)]
    return windows or [Window(_text([word for part in parts for word in part]))]


def read_prompts(base: Base, prompts: Sequence[str], reading: PromptReading) -> PromptStates:
    """All that the UNet reads of prompts, as `prompt_states`; prompts without weights that fit are the very same.

    A weight w moves a token's states to w times their distance from what the empty prompt has in that place: 1 is
    nothing at all, 0 takes the token's own states away, and other tokens keep theirs. The pooled state (XL) is the
    first window's, without weights.

    Returns:
        States `[prompts, layers, tokens, width]` of as many tokens for all (`aligned`).

    Raises:
        MixshowError: a bracket without its partner.
    """
    windows = [prompt_windows(base, prompt, reading) for prompt in prompts]
    flat = [window for part in windows for window in part]
    encoded = prompt_states(base, [window.text for window in flat], clip_skip=reading.clip_skip)
    if any(window.weights for window in flat):
        empty = encoded_texts(base, [""], clip_skip=reading.clip_skip).states
        factors = torch.stack([_factors(window, encoded.states.shape[-2]) for window in flat])
        encoded = dataclasses.replace(encoded, states=_weighted(encoded.states, empty, factors))
    if len(flat) == len(prompts):
        return encoded
    joined, start = [], 0
    for part in windows:
        own = encoded[start : start + len(part)]
        start += len(part)
        joined.append(dataclasses.replace(own[:1], states=torch.cat(list(own.states), dim=-2)[None]))
    return PromptStates.joined(aligned(joined))


def read_ids(base: Base, prompts: Sequence[str], reading: PromptReading) -> Tensor:
    """The token ids that stand where `read_prompts` has states, as layer 0 reads them: `[prompts, tokens]`."""
    rows = []
    for prompt in prompts:
        texts = [base.vocabulary.bind(window.text, 0) for window in prompt_windows(base, prompt, reading)]
        rows.append(prompt_ids(base, texts).flatten())
    tokens = math.lcm(*(len(row) for row in rows))
    return torch.stack([row.repeat(tokens // len(row)) for row in rows])


def aligned(parts: Sequence[PromptStates]) -> list[PromptStates]:
    """The same states with equally many tokens, as a batch needs them.

    Shorter ones are repeated as a whole up to the least common multiple. Attention to keys that all stand there equally
    often is attention to them once, so that a prompt's picture does not depend on how long others are.
    """
    tokens = math.lcm(*(part.states.shape[-2] for part in parts))
    return [dataclasses.replace(part, states=_repeated(part.states, tokens // part.states.shape[-2])) for part in parts]


def _repeated(states: Tensor, times: int) -> Tensor:
    return states if times == 1 else torch.cat([states] * times, dim=-2)


def _filled(base: Base, words: Sequence[Words], room: int, several: bool) -> list[Window]:
    """Windows of one part of a prompt, `room` tokens each."""
    units = [
        Words(match[0], word.weight) for word in words for match in _WORD.finditer(word.text)
    ]  # a tokenizer parts texts at blanks, so these have the tokens they have side by side
    counts = [_count(base, unit.text) for unit in units]
    plain = all(word.weight == 1 for word in words)
    if plain and (sum(counts) <= room or not several):
        return [Window(_text(words))] if units else []
    if not several:
        return [_window(units, counts)]
    windows = []
    while units:
        used = _fitting(units, counts, room)
        windows.append(_window(units[:used], counts[:used]))
        units, counts = units[used:], counts[used:]
    return windows


def _text(words: Sequence[Words]) -> str:
    return "".join(word.text for word in words)


def _fitting(units: Sequence[Words], counts: Sequence[int], room: int) -> int:
    """How many units go into a window."""
    length, used, comma = 0, 0, 0
    for unit, count in zip(units, counts):
        if used and length + count > room:
            return comma or used
        length, used = length + count, used + 1
        if unit.text.endswith(",") and length >= _LATE * room:
            comma = used
    return used


def _window(units: Sequence[Words], counts: Sequence[int]) -> Window:
    weights = [unit.weight for unit, count in zip(units, counts) for _ in range(count)]
    text = " ".join(unit.text for unit in units)
    return Window(text, tuple(weights) if any(weight != 1 for weight in weights) else ())


def _count(base: Base, text: str) -> int:
    """Tokens of a text; concept tokens have one entry for each layer, so any layer's tells."""
    return len(base.tokenizer(base.vocabulary.bind(text, 0), add_special_tokens=False).input_ids)


def _factors(window: Window, tokens: int) -> Tensor:
    """The weight of each place of a window, `[tokens]`; 1 for the begin token and for what follows the text."""
    factors = torch.ones(tokens)
    own = torch.tensor(window.weights)[: tokens - 2]  # of words that are cut with a place for the end token
    factors[1 : 1 + len(own)] = own
    return factors


def _weighted(states: Tensor, empty: Tensor, factors: Tensor) -> Tensor:
    """`[windows, layers, tokens, width]` with each token at its weight from the empty prompt's `[1, tokens, width]`."""
    factor = factors.to(states)[:, None, :, None]
    return torch.where(factor == 1, states, empty[:, None] + factor * (states - empty[:, None]))
