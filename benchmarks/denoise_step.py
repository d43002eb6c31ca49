"""How long a denoising step takes, plain and with three regions: `python benchmarks/denoise_step.py`.

On a random base of the built-in base's shape (weights do not matter for time): latents of 16x32, one picture with
guidance. The variants are timed in turn, so that other load on the machine hits all of them; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch.profiler import ProfilerActivity, profile

from mixshow.core.attachment import Attachment
from mixshow.edlora.layerwise import layerwise_states
from mixshow.models import cross_attention_layers
from mixshow.puppets.networks import LATENT_CHANNELS, MAX_TOKENS, TEXT_WIDTH, make_unet
from mixshow.sampling.precision import Precision, autocast
from mixshow.sampling.regional_attention import RegionPlan, regional_attention
from mixshow.sampling.regions import Edges, PixelBox, Region

SIZE = (256, 128)
LATENTS = (16, 32)
THIRDS = (PixelBox(0, 0, 85, 128), PixelBox(85, 0, 171, 128), PixelBox(171, 0, 256, 128))
HALVES = 2


def main() -> None:
    """Print a table of milliseconds per step, and the operations that take most of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    unet = make_unet().eval().requires_grad_(False)
    plans = {
        "plain": None,
        "three regions, hard": RegionPlan(regions(), "scene", "", size=SIZE),
        "three regions, soft": RegionPlan(regions(), "scene", "", size=SIZE, edges=Edges.SOFT),
    }
    for precision in (Precision.FP32, Precision.BF16):
        times = measure(unet, plans, precision, arguments.pictures, arguments.repeats)
        for name, seconds in times.items():
            ratio = seconds / times["plain"]
            print(f"{precision.value}  {name:22} {1000 * seconds:8.1f} ms   {ratio:.2f} of plain")
    print_profile(unet, plans["three regions, hard"], arguments.pictures)


def regions() -> list[Region]:
    return [Region(box, f"puppet {i}") for i, box in enumerate(THIRDS)]


def measure(
    unet: UNet2DConditionModel, plans: dict[str, RegionPlan | None], precision: Precision, pictures: int, repeats: int
) -> dict[str, float]:
    """Median seconds of a step for each plan."""
    seconds: dict[str, list[float]] = {name: [] for name in plans}
    for repeat in range(repeats + 1):
        for name, plan in plans.items():
            with attached(unet, plan), layerwise_states(unet):
                step = stepper(unet, precision, pictures)
                step()  # keys and routings are computed in a scene's first step only
                start = time.perf_counter()
                step()
                if repeat:
                    seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def attached(unet: UNet2DConditionModel, plan: RegionPlan | None) -> Attachment:
    if plan is None:
        return Attachment()
    states = torch.randn(HALVES, len(plan.texts), len(cross_attention_layers(unet)), MAX_TOKENS, TEXT_WIDTH)
    return regional_attention(unet, plan, states)


def stepper(unet: UNet2DConditionModel, precision: Precision, pictures: int) -> Callable[[], object]:
    latents = torch.randn(HALVES * pictures, LATENT_CHANNELS, *LATENTS)
    states = torch.randn(HALVES * pictures, len(cross_attention_layers(unet)), MAX_TOKENS, TEXT_WIDTH)

    def step() -> object:
        with torch.no_grad(), autocast(latents.device, precision):
            return unet(latents, 500, encoder_hidden_states=states).sample

    return step


def print_profile(unet: UNet2DConditionModel, plan: RegionPlan | None, pictures: int) -> None:
    with attached(unet, plan), layerwise_states(unet):
        step = stepper(unet, Precision.FP32, pictures)
        step()
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            step()
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


if __name__ == "__main__":
    main()
