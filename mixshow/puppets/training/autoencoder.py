"""Stage ``autoencoder``: pictures to latents of an eighth of the size and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mixshow.puppets.canvas import Canvas, Frame
from mixshow.puppets.cast import CAST, cast_scene
from mixshow.puppets.networks import make_autoencoder
from mixshow.puppets.training.loop import Plan, Trainer, autocast, device, load_average, step_generators
from mixshow.puppets.world import SQUARE, WIDE, sample_scene

STAGE = "autoencoder"
_SEED = 101
_HELD_OUT = 10_000_000  # scene numbers from here on are never trained on
_BATCH, _CROP = 16, 64


def to_tensor(pictures: list[Image.Image]) -> Tensor:
    """Pictures of one size as [n, 3, height, width] in -1 .. 1."""
    values = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(values).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(values: Tensor) -> list[Image.Image]:
    """The reverse of :func:`to_tensor`."""
    whole = ((values.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(value) for value in whole.permute(0, 2, 3, 1).cpu().numpy()]


def scatter_shapes(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flat shapes over a picture, so that the autoencoder also learns what the world does not contain."""
    canvas = Canvas(picture.size)
    width, height = picture.size
    for _ in range(int(rng.integers(6, 14))):
        frame = Frame((rng.uniform(0, width), rng.uniform(0, height)), rng.uniform(5, 16), rng.uniform(-3.2, 3.2))
        first, second = (tuple(rng.integers(10, 250, 3).tolist()) for _ in range(2))
        sort = int(rng.integers(5))
        if sort == 0:
            canvas.polygon(frame.star(0, 0, 1), first)
        elif sort == 1:
            canvas.polygon(frame.shape([(-0.7, 0.8), (0.7, 0.8), (rng.uniform(-0.5, 0.5), -1.2)]), first)
        elif sort == 2:
            canvas.polygon(frame.oval(0, 0, 1, rng.uniform(0.4, 1)), first)
            canvas.polygon(frame.oval(0, 0, 0.45, 0.4), second)
        elif sort == 3:
            canvas.polygon(frame.shape([(-1, -1), (1, -1), (1, 1), (-1, 1)]), first)
            for v in (-0.66, 0.33):
                canvas.polygon(frame.shape([(-1, v), (1, v), (1, v + 0.5), (-1, v + 0.5)]), second)
        else:
            for row in range(3):
                for column in range(3):
                    u, v = (column - 1.5) * 0.75, (row - 1.5) * 0.75
                    square = frame.shape([(u, v), (u + 0.75, v), (u + 0.75, v + 0.75), (u, v + 0.75)])
                    canvas.polygon(square, first if (row + column) % 2 else second)
    layer = canvas.image.resize(picture.size, Image.Resampling.BOX)
    result = picture.copy()
    result.paste(layer, (0, 0), layer.getchannel("A"))
    return result


class _Crops:
    """Random crops, half of them around a joint of a puppet, from a fixed set of renders kept in memory."""

    def __init__(self, scenes: int) -> None:
        self.pictures: list[np.ndarray] = []
        self.joints: list[np.ndarray] = []
        for index in tqdm(range(scenes), "renders", mininterval=5):
            scene = sample_scene(_SEED, index, WIDE if index % 4 == 3 else SQUARE)
            picture = scene.render()
            if index % 5 == 4:
                picture = scatter_shapes(picture, np.random.default_rng([_SEED, index, 3]))
            self.pictures.append(np.asarray(picture))
            self.joints.append(np.concatenate(scene.people)[:, :2])

    def batch(self, rng: np.random.Generator) -> Tensor:
        crops = []
        for _ in range(_BATCH):
            chosen = int(rng.integers(len(self.pictures)))
            picture, joints = self.pictures[chosen], self.joints[chosen]
            height, width, _ = picture.shape
            centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
            if rng.random() < 0.5:
                centre = joints[rng.integers(len(joints))] + rng.uniform(-20, 20, 2)
            left, top = (
                int(np.clip(c - _CROP / 2, 0, side - _CROP)) for c, side in zip(centre, (width, height), strict=True)
            )
            crop = picture[top : top + _CROP, left : left + _CROP]
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _gradients(values: Tensor) -> tuple[Tensor, Tensor]:
    return values[..., 1:, :] - values[..., :-1, :], values[..., 1:] - values[..., :-1]


def reconstruction_loss(result: Tensor, target: Tensor) -> Tensor:
    """L1 + L2 + L1 of image gradients."""
    edges = sum(F.l1_loss(a, b) for a, b in zip(_gradients(result), _gradients(target), strict=True))
    return F.l1_loss(result, target) + 4 * F.mse_loss(result, target) + 0.5 * edges


def train(folder: Path, steps: int, scenes: int = 3000, stop_at: int | None = None) -> None:
    """Train (or go on training) the autoencoder."""
    torch.manual_seed(_SEED)
    on = device()
    model = make_autoencoder().to(on)
    crops = _Crops(scenes)

    def loss_of(step: int) -> Tensor:
        rng, generator = step_generators(_SEED, step)
        batch = crops.batch(rng).to(on)
        with autocast(on):
            posterior = model.encode(batch).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(on)
            result = model.decode(posterior.mean + posterior.std * noise).sample
        divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
        return reconstruction_loss(result.float(), batch) + 2e-4 * divergence

    Trainer(folder, STAGE, {"vae": model}, Plan(steps, 2e-3, warmup=200)).run(loss_of, stop_at)


def load(folder: Path) -> AutoencoderKL:
    """The trained autoencoder, in evaluation mode."""
    model = make_autoencoder()
    load_average(folder, STAGE, {"vae": model})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def reconstruct(model: AutoencoderKL, pictures: list[Image.Image]) -> list[Image.Image]:
    """The pictures (of one size) after encoding and decoding."""
    values = to_tensor(pictures).to(model.device)
    with autocast(model.device):
        return to_pictures(model.decode(model.encode(values).latent_dist.mode()).sample)


def psnr(first: list[Image.Image], second: list[Image.Image]) -> float:
    """Peak signal-to-noise ratio in dB over the mean squared error of all pictures."""
    errors = [np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2) for a, b in zip(first, second, strict=True)]
    return float(10 * np.log10(255**2 / np.mean(errors)))


def measure(folder: Path, count: int = 32) -> dict[str, float]:
    """PSNR on held-out scenes and on cast members, which training never saw."""
    model = load(folder)
    sets = {
        "square": [sample_scene(_SEED, _HELD_OUT + i, SQUARE).render() for i in range(count)],
        "wide": [sample_scene(_SEED, _HELD_OUT + i, WIDE).render() for i in range(count)],
        "cast": [cast_scene(name, _HELD_OUT + i).render() for i in range(count // 8) for name in CAST],
    }
    return {name: psnr(pictures, reconstruct(model, pictures)) for name, pictures in sets.items()}
