"""Regions with prompts of their own from Python, through mixshow's pipeline class.

    python examples/regional_pipeline.py MODEL "two puppets on a stage" "<pip1> <pip2>" "<luma1> <luma2>" picture.png

MODEL is a fused folder, any Stable Diffusion 1.x, 2.x or XL, or `puppets`. Every character gets a column.
"""

from __future__ import annotations

import argparse

import torch

from mixshow.sampling import RegionalPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("characters", nargs="+")
    parser.add_argument("picture")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 128), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--offload", action="store_true", help="keep models off the accelerator while they wait")
    arguments = parser.parse_args()

    pipe = RegionalPipeline.from_pretrained(arguments.model)
    if arguments.offload:
        pipe.enable_model_cpu_offload()
    else:
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    count = len(arguments.characters)
    regions = [
        {"box": [i / count, 0, (i + 1) / count, 1], "prompt": f"{character}, {arguments.prompt}"}
        for i, character in enumerate(arguments.characters)
    ]
    made = pipe(
        arguments.prompt,
        regions,
        width=arguments.size[0],
        height=arguments.size[1],
        num_inference_steps=arguments.steps,
        generator=torch.Generator().manual_seed(0),
    )
    made.images[0].save(arguments.picture)


if __name__ == "__main__":
    main()
