"""Draw with the folder that `mixshow fuse` writes for `format: lora`, in plain diffusers, without mixshow.

    python examples/fused_lora_in_diffusers.py BASE FOLDER "a photo of <pip1> <pip2> and <luma1> <luma2>" picture.png

BASE is the model it was fused on, as diffusers knows it (a folder or a hub id): Stable Diffusion 1.x, 2.x or XL.
Needs diffusers with peft. Tokens have one vector here for all layers; what that loses is told in docs/fusion.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--size", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"), help="pixels; default: the model's")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    width, height = arguments.size or (None, None)

    pipeline = DiffusionPipeline.from_pretrained(arguments.base)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.load_lora_weights(arguments.folder, weight_name="pytorch_lora_weights.safetensors")
    for ending in ("", "_2"):  # XL has a second text encoder
        file = arguments.folder / f"embeddings{ending}.safetensors"
        if not file.exists():
            continue
        encoder, tokenizer = getattr(pipeline, f"text_encoder{ending}"), getattr(pipeline, f"tokenizer{ending}")
        for token, vector in load_file(file).items():
            pipeline.load_textual_inversion(vector, token=token, text_encoder=encoder, tokenizer=tokenizer)

    generator = torch.Generator().manual_seed(arguments.seed)
    made = pipeline(
        arguments.prompt, width=width, height=height, num_inference_steps=arguments.steps, generator=generator
    )
    made.images[0].save(arguments.picture)


if __name__ == "__main__":
    main()
