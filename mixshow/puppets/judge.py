"""The judge: a small network, trained on renders only, that tells who and what a crop of a picture shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mixshow.puppets.backgrounds import BACKGROUNDS
from mixshow.puppets.cast import CAST
from mixshow.puppets.palette import HAIRS, KINDS, SHIRTS, TROUSERS
from mixshow.puppets.weights_file import load_weights

NOBODY = "none"
SIDE = 96  # the network's input in pixels
HEADS: dict[str, tuple[str, ...]] = {
    "identity": (*CAST, NOBODY),
    "kind": KINDS,
    "hair": HAIRS,
    "shirt": SHIRTS,
    "trousers": TROUSERS,
    "background": BACKGROUNDS,
}
ATTRIBUTES = tuple(name for name in HEADS if name != "identity")


def letterbox(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The picture scaled into a square, the rest mid grey."""
    image = image.convert("RGB")
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    square = Image.new("RGB", (side, side), (128, 128, 128))
    square.paste(image.resize(size, Image.Resampling.BILINEAR), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def to_input(images: Iterable[Image.Image]) -> Tensor:
    """Letterboxed pictures as [n, 3, SIDE, SIDE] in -1 .. 1."""
    values = np.stack([np.asarray(letterbox(image)) for image in images])
    return torch.from_numpy(values).permute(0, 3, 1, 2).float() / 127.5 - 1


class ConvBlock(nn.Module):
    """Halves the resolution, then refines once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, outputs)
        self.refine = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.refine_norm = nn.GroupNorm(8, outputs)

    def forward(self, values: Tensor) -> Tensor:
        values = torch.relu(self.norm(self.down(values)))
        return torch.relu(values + self.refine_norm(self.refine(values)))


class JudgeNet(nn.Module):
    """Four halvings, then one linear head per question on the 6 x 6 map."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 48, 96, 128)
        self.blocks = nn.Sequential(*(ConvBlock(a, b) for a, b in pairwise(widths)))
        # Position matters (hair is above the shirt), so the map is flattened, not averaged.
        self.squeeze = nn.Conv2d(widths[-1], 32, 1)
        self.hidden = nn.Linear(32 * (SIDE // 16) ** 2, 192)
        self.drop = nn.Dropout(0.1)
        self.heads = nn.ModuleDict({name: nn.Linear(192, len(answers)) for name, answers in HEADS.items()})

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        """Pictures [n, 3, SIDE, SIDE] to logits [n, answers] per head."""
        features = torch.relu(self.squeeze(self.blocks(values))).flatten(1)
        features = self.drop(torch.relu(self.hidden(features)))
        return {name: head(features) for name, head in self.heads.items()}


class Judge:
    """Answers questions about crops of any size."""

    def __init__(self, network: JudgeNet) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path | str | None = None) -> Self:
        """The shipped judge, or one from a file.

        Raises:
            MixshowError: the weights are missing.
        """
        return cls(load_weights(JudgeNet(), "judge", path))

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image], head: str = "identity") -> np.ndarray:
        """Probabilities [n, answers] in the order of ``HEADS[head]``."""
        return self.network(to_input(images))[head].softmax(dim=1).numpy()

    def identities(self, images: Sequence[Image.Image]) -> list[str]:
        """For each crop a cast member's name, or "none"."""
        return [HEADS["identity"][i] for i in self.probabilities(images).argmax(axis=1)]

    @torch.no_grad()
    def attributes(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """For each crop its kind, hair, shirt, trousers and background."""
        logits = self.network(to_input(images))
        answers = {name: logits[name].argmax(dim=1).tolist() for name in ATTRIBUTES}
        return [{name: HEADS[name][answers[name][row]] for name in ATTRIBUTES} for row in range(len(images))]


def confusion_table(truth: Sequence[str], answers: Sequence[str], labels: Sequence[str] = HEADS["identity"]) -> str:
    """A Markdown table: a row per true label, a column per answer, counts in the cells."""
    counts = {(row, column): 0 for row in labels for column in labels}
    for pair in zip(truth, answers, strict=True):
        counts[pair] += 1
    lines = ["| truth \\ answer | " + " | ".join(labels) + " |", "|---" * (len(labels) + 1) + "|"]
    lines += [f"| {row} | " + " | ".join(str(counts[row, column]) for column in labels) + " |" for row in labels]
    return "\n".join(lines)
