"""Stage ``judge``: trains the judge on renders only, and measures it on renders it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from mixshow.puppets.judge import ATTRIBUTES, HEADS, Judge, JudgeNet, confusion_table, letterbox
from mixshow.puppets.training.loop import Plan, Trainer, autocast, device, load_average, step_generators
from mixshow.puppets.training.renders import HELD_OUT, Sample, make_samples

STAGE = "judge"
_SEED = 405
_BATCH = 64
_UNKNOWN = -100  # the class number that cross entropy ignores


def crop_box(sample: Sample, who: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box around one puppet with a random margin, or sometimes the whole picture of a single puppet."""
    width, height = sample.scene.size
    if len(sample.scene.puppets) == 1 and rng.random() < 0.5:
        return 0, 0, width, height
    left, top, right, bottom = sample.scene.puppets[who].box or (0, 0, width, height)
    margins = rng.uniform(-0.03, 0.25, 4) * np.array([right - left, bottom - top] * 2)
    return (
        max(0, int(left - margins[0])),
        max(0, int(top - margins[1])),
        min(width, int(right + margins[2]) + 1),
        min(height, int(bottom + margins[3]) + 1),
    )


def labels(sample: Sample, who: int | None) -> dict[str, int]:
    """The class number per head; unknown where nobody is there to ask about."""
    answers = {"background": sample.scene.background, "identity": HEADS["identity"][-1]}
    if who is not None:
        look = sample.scene.puppets[who].look
        answers |= {"identity": sample.identities[who], "kind": look.kind, "hair": look.hair}
        answers |= {"shirt": look.shirt, "trousers": look.trousers}
    return {name: HEADS[name].index(answers[name]) if name in answers else _UNKNOWN for name in HEADS}


def _visible(sample: Sample, who: int) -> bool:
    """Whether a puppet has a box to crop around."""
    return sample.scene.puppets[who].box is not None


def _draw(sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, int]]:
    """One augmented training crop [SIDE, SIDE, 3] with its labels."""
    choices = [who for who in range(len(sample.scene.puppets)) if _visible(sample, who)]
    who = int(rng.choice(choices)) if choices else None
    if who is None:
        width, height = sample.scene.size
        left, top = rng.uniform(0, 0.5, 2)
        box = (int(left * width), int(top * height), width, height)
    else:
        box = crop_box(sample, who, rng)
    picture = sample.picture.crop(box)
    if rng.random() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    crop = np.asarray(letterbox(picture), dtype=np.float32) / 127.5 - 1
    crop = crop * rng.uniform(0.92, 1.08, 3) + rng.uniform(-0.06, 0.06, 3)
    crop += rng.normal(0, rng.uniform(0, 0.05), crop.shape)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    return np.ascontiguousarray(crop, dtype=np.float32), labels(sample, who)


def train(folder: Path, steps: int, renders: int, stop_at: int | None = None) -> None:
    """Train (or go on training) the judge."""
    torch.manual_seed(_SEED)
    on = device()
    network = JudgeNet().to(on)
    samples = make_samples(folder, range(renders), decoded=0.6)

    def loss_of(step: int) -> Tensor:
        rng, generator = step_generators(_SEED, step)
        torch.manual_seed(generator.initial_seed())  # the network's dropout draws from the global generator
        drawn = [_draw(samples[int(rng.integers(len(samples)))], rng) for _ in range(_BATCH)]
        crops = torch.from_numpy(np.stack([crop for crop, _ in drawn])).permute(0, 3, 1, 2).contiguous().to(on)
        with autocast(on):
            logits = network(crops)
        losses = []
        for name in HEADS:
            target = torch.tensor([truth[name] for _, truth in drawn], device=on)
            weight = 2.0 if name == "identity" else 1.0
            losses.append(weight * F.cross_entropy(logits[name].float(), target, ignore_index=_UNKNOWN))
        return torch.stack(losses).sum()

    Trainer(folder, STAGE, {STAGE: network}, Plan(steps, 2e-3, ema=0.995)).run(loss_of, stop_at)


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers on held-out renders that went through the autoencoder."""

    identity: float  # cast members recognised as themselves
    nobody: dict[str, float]  # "none" answered, per sort of puppet that is no cast member
    attributes: dict[str, float]
    table: str


def measure(folder: Path, renders: int = 600) -> Accuracy:
    """The judge's own error on renders it never saw."""
    network = JudgeNet()
    load_average(folder, STAGE, {STAGE: network})
    judge = Judge(network)
    rng = np.random.default_rng(_SEED)
    crops: list[Image.Image] = []
    facts: list[tuple[Sample, int]] = []
    for sample in make_samples(folder, range(HELD_OUT, HELD_OUT + renders), decoded=1.0):
        for who in range(len(sample.scene.puppets)):
            if _visible(sample, who):
                crops.append(sample.picture.crop(crop_box(sample, who, rng)))
                facts.append((sample, who))
    answers, attributes = judge.identities(crops), judge.attributes(crops)
    truth = [sample.identities[who] for sample, who in facts]
    sorts = [sample.sorts[who] for sample, who in facts]
    right = np.array([a == b for a, b in zip(truth, answers, strict=True)])
    expected = [labels(sample, who) for sample, who in facts]
    return Accuracy(
        identity=float(right[[sort == "member" for sort in sorts]].mean()),
        nobody={sort: float(right[[s == sort for s in sorts]].mean()) for sort in sorted(set(sorts) - {"member"})},
        attributes={
            name: float(np.mean([HEADS[name][e[name]] == a[name] for e, a in zip(expected, attributes, strict=True)]))
            for name in ATTRIBUTES
        },
        table=confusion_table(truth, answers),
    )
