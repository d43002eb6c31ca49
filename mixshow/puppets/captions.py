"""Captions for scenes: several templates, with attributes left out at random."""

from __future__ import annotations

import numpy as np

from mixshow.puppets.backgrounds import PLACES
from mixshow.puppets.drawing import Look
from mixshow.puppets.world import Puppet, Scene

_OPENINGS = (
    "a photo of", "a photo of", "a photo of", "photo of", "a picture of", "a rendition of",
    "a good photo of", "a cool photo of", "a nice picture of", "a painting of", "", "", "",
)  # fmt: skip
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
_PLURALS = {"boy": "boys", "girl": "girls", "bear": "bears", "robot": "robots", "alien": "aliens"}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many captions for the scene, lower case, at most 46 tokens with the start and end tokens."""
    puppets = scene.puppets
    if len(puppets) == 1 and rng.random() < 0.25:
        text = _tags(puppets[0], rng)
        return f"{text}, {scene.background}" if rng.random() < 0.85 else text
    if len(puppets) > 1 and rng.random() < 0.12:
        text = _counted(puppets)
    else:
        # The more puppets, the less is said about each, so that the caption stays short enough.
        detail = {1: 1.0, 2: 0.85, 3: 0.45, 4: 0.15, 5: 0.0}[len(puppets)]
        text = _joined([_described(puppet, detail, rng) for puppet in puppets])
    opening = str(rng.choice(_OPENINGS)) if len(puppets) <= 3 else ""
    place = (", " if rng.random() < 0.7 else " ") + PLACES[scene.background] if rng.random() < 0.85 else ""
    return f"{opening} {text}{place}".strip()


def describe(look: Look) -> str:
    """The full description of a look, as captions phrase it: kind, hair, shirt and trousers."""
    clothes = f"{with_article(look.shirt)} shirt and {look.trousers} trousers"
    return f"{with_article(look.kind)} with {look.hair} hair, {clothes}"


def with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _counted(puppets: list[Puppet]) -> str:
    kinds = {puppet.look.kind for puppet in puppets}
    noun = _PLURALS[kinds.pop()] if len(kinds) == 1 else "puppets"
    return f"{NUMBERS[len(puppets)]} {noun}"


def _described(puppet: Puppet, detail: float, rng: np.random.Generator) -> str:
    look = puppet.look
    kind = "puppet" if rng.random() < 0.06 else look.kind
    attributes = [f"{look.hair} hair", f"{with_article(look.shirt)} shirt", f"{look.trousers} trousers"]
    everything = rng.random() < 0.45 * detail
    chosen = [a for a in attributes if everything or rng.random() < 0.7 * detail]
    if not chosen and detail == 0 and rng.random() < 0.7:
        chosen = [attributes[1]]
    text = with_article(kind) + (f" with {_joined(chosen)}" if chosen else "")
    if puppet.pose != "free" and rng.random() < 0.5 * detail:
        text += f", {puppet.pose}" if chosen else f" {puppet.pose}"
    return text


def _tags(puppet: Puppet, rng: np.random.Generator) -> str:
    look = puppet.look
    tags = [f"{look.hair} hair", f"{look.shirt} shirt", f"{look.trousers} trousers"]
    if puppet.pose != "free":
        tags.append(puppet.pose)
    return ", ".join([look.kind, *(tag for tag in tags if rng.random() < 0.75)])
