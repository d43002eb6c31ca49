"""Built-in prompt lists; `{concept}` stands for a concept's tokens. Held-out and validation lists share no text."""

from __future__ import annotations

from collections.abc import Iterable

PUBLISHED_TEXT = ("photo of a {concept}", "{concept}")
PUBLISHED_PICTURES = ("photo of a {concept}",)

TEXT = (
    "photo of a {concept}",
    "{concept}",
    "a picture of {concept} on the beach",
    "a photo of {concept} in the forest",
    "a photo of {concept} in a street at night",
    "a cool photo of {concept} in a room",
    "a rendition of {concept} sitting in the snow",
    "a photo of a {concept}",
    "a good photo of {concept}",
    "a painting of {concept}",
    "a drawing of {concept}",
    "a close up photo of {concept}",
    "a bright photo of {concept}",
    "a nice picture of {concept} in the park",
    "{concept} standing in the city",
    "{concept} walking in the meadow",
    "{concept}, smiling",
    "{concept}, best quality",
    "{concept} in the rain",
    "{concept} in the desert",
    "{concept} next to a house",
    "{concept} with a red shirt",
    "{concept} with a blue hat",
    "a boy and {concept}",
    "{concept} and a girl",
    "a man, a woman and {concept}",
    "photo of {concept} on the stage",
    "photo of {concept} at the lake",
    "photo of {concept} in the kitchen, high quality",
    "{concept} in the sea",
)

PICTURES = TEXT[::2]

# The empty prompt is what guidance leads away from, so it is one of the ordinary ones.
CAPTIONS = (
    "",
    "a photo of a boy on the beach",
    "a photo of a girl in the forest",
    "a picture of a bear in the snow",
    "a painting of a robot in the city",
    "a man with brown hair and a blue shirt",
    "a woman with a red shirt in a street at night",
    "a boy and a girl in the park",
    "three people on the stage",
    "a house next to the lake",
    "a dog in the meadow",
    "a photo of a room",
    "a girl in the sea",
    "a bear in the desert",
)

# Distilling moves weights so much that it needs more of them to leave others as they were.
ORDINARY = (
    *CAPTIONS,
    "a photo of a robot in a room",
    "a girl with a red hat in the snow",
    "a man on the beach at night",
    "a bear and a boy in the forest",
    "a photo of a woman in the city",
    "two people in the meadow",
    "a boy with a green shirt on the stage",
    "a painting of a girl at the lake",
    "a robot in the desert",
    "a man with grey trousers in the kitchen",
    "a good photo of a street",
    "a woman and a man in the park",
    "a drawing of a bear",
    "a photo of the sea",
)

HELD_OUT = (
    "a picture of {concept}",
    "a photo of {concept} in the meadow",
    "{concept} on the stage at night",
)

HELD_OUT_CAPTIONS = (
    "a picture of a girl with a blue shirt",
    "a photo of a bear in the street",
    "a boy with green trousers in the park",
)

# What refining stops by; the report's lists stay held out.
VALIDATION = (
    "a good picture of {concept} in the desert",
    "{concept} in a room at night",
    "a painting of {concept} in the forest",
)

VALIDATION_CAPTIONS = (
    "a picture of a man in the desert",
    "a girl with a red hat at the lake",
)


def filled(templates: Iterable[str], concept: str) -> list[str]:
    """The templates with a concept's tokens in them."""
    return [template.replace("{concept}", concept) for template in templates]
