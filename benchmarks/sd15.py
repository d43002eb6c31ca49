"""What training and composing cost at Stable Diffusion 1.5's size, on random weights of its shape.

    python benchmarks/sd15.py [--side 512] [--batch 1] [--folder FOLDER]

Runs `mixshow train` (rank 4 on all attention projections of both models, one drawn character) and `mixshow compose`
(three regions, guidance) as commands, each with two numbers of steps: what the longer run takes more, by step, and the
peak resident memory of the longer one (Linux). Random weights cost what trained ones do. The folder needs 4.3 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mixshow.core.stopwatch import machine, wait_and_weigh
from mixshow.evaluation.page import markdown_table
from mixshow.models.base import Base, save_base
from mixshow.models.clip_tokenizer import clip_tokenizer
from mixshow.puppets.cast import write_cast

SCHEDULE = {
    "_class_name": "PNDMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--batch", type=int, default=1, help="pictures of a training step")
    parser.add_argument("--folder", type=Path, help="where the random base is written, and kept; default: nowhere")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        base = folder / "base"
        if not base.is_dir():
            save_base(random_base(), base)
        training = training_options(folder, base, arguments.side, arguments.batch)
        rows = [["train", *cost(["train", str(training), "--no-resume"], "train.steps={}", (1, 3))]]
        scene = scene_options(folder, base, arguments.side)
        rows.append(["compose, three regions, one picture", *cost(["compose", str(scene)], "steps={}", (1, 4))])
    print(json.dumps(machine()))
    print(markdown_table(["command", "seconds a step", "seconds besides", "peak memory, GB"], rows))


def random_base() -> Base:
    """A base of Stable Diffusion 1.5's shape."""
    torch.manual_seed(0)
    tokenizer = clip_tokenizer(length=77)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, projection_dim=768, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    widths = (320, 640, 1280, 1280)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=widths, cross_attention_dim=768, attention_head_dim=8
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    return Base(tokenizer, CLIPTextModel(text), vae, unet, SCHEDULE, source="random")


def random_xl_base() -> Base:
    """A base of Stable Diffusion XL's shape."""
    base = random_base()
    tokenizer = clip_tokenizer(length=base.topology.max_tokens, pad_with_zero=True)
    second = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=1280, intermediate_size=5120, num_hidden_layers=32,
        num_attention_heads=20, projection_dim=1280, hidden_act="gelu", bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    return dataclasses.replace(
        base, unet=unet, tokenizer_2=tokenizer, text_encoder_2=CLIPTextModelWithProjection(second)
    )


def training_options(folder: Path, base: Path, side: int, batch: int) -> Path:
    """Options of `mixshow train`, with pictures beside them."""
    write_cast(folder / "cast", ["pip"], pictures=4)
    options = {
        "base": str(base),
        "output": str(folder / "concept"),
        "concept": {"tokens": "<pip1>+<pip2>", "initialiser": "<rand-0.013>+boy"},
        "data": {
            "images": str(folder / "cast" / "pip" / "image"),
            "masks": str(folder / "cast" / "pip" / "mask"),
            "captions": str(folder / "cast" / "pip" / "caption"),
            "size": side,
            "transform": "centre_crop",
        },
        "train": {"batch_size": batch, "steps": 1},
        "loss": {"mask": True, "attention_weight": 0.01},
    }
    return written(options, folder / "train.json")


def scene_options(folder: Path, base: Path, side: int) -> Path:
    """A scene of three regions, without a pose."""
    thirds = [[i / 3, 0.0, (i + 1) / 3, 1.0] for i in range(3)]
    options = {
        "model": str(base),
        "output": str(folder / "scene.png"),
        "size": [side, side],
        "prompt": "three friends in a park",
        "regions": [{"box": box, "prompt": f"a friend in a park, number {i}"} for i, box in enumerate(thirds)],
    }
    return written(options, folder / "scene.json")


def written(options: object, path: Path) -> Path:
    """An options file; JSON is YAML too."""
    path.write_text(json.dumps(options))
    return path


def cost(command: Sequence[str], steps: str, counts: tuple[int, int]) -> list[str]:
    """Seconds a step, seconds besides, and GB at the peak of a command."""
    seconds, peak = [], 0.0
    for count in counts:
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "mixshow", *command, steps.format(count)])
        peak = wait_and_weigh([process])
        if process.returncode:
            raise SystemExit(f"mixshow {command[0]} failed")
        seconds.append(time.perf_counter() - started)
    each = (seconds[1] - seconds[0]) / (counts[1] - counts[0])
    return [f"{each:.1f}", f"{seconds[0] - each * counts[0]:.1f}", f"{peak:.1f}"]


if __name__ == "__main__":
    main()
