"""Time and memory of a picture with regions over the same picture with one prompt, all with guidance.

Every way is timed in turn, as often as there are rounds, so that other load on the machine hits all of them; medians
count. Timed are the text (layer-wise tokens in every region, none in the one prompt), the first step, in which keys and
values are made, later steps, and decoding, which is the same for all: a picture of 20 steps is the sum of its parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.published_attention import PublishedRegion, encode_by_layer, published_attention
from benchmarks.sd15 import random_base
from mixshow.core.attachment import Attachment
from mixshow.core.stopwatch import machine, wait_and_weigh
from mixshow.evaluation.page import markdown_table
from mixshow.models import Base, PromptStates, make_scheduler, prompt_states
from mixshow.models.base import BUILT_IN, load_base
from mixshow.models.embedding_table import with_concept_tokens
from mixshow.sampling.denoise import denoise
from mixshow.sampling.precision import Precision
from mixshow.sampling.regional_attention import RegionPlan, regional_attention
from mixshow.sampling.regions import Edges, PixelBox, Region

ONE = "one prompt"
PROMPT, NEGATIVE = "friends in a park, a photo, detailed", "blurry, cropped"
PICTURE_STEPS = 20

Prepared = tuple[PromptStates, PromptStates, Attachment]
Way = Callable[[Base, int], Prepared]


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of the parts of one picture, and GB of accelerator memory at its peak (0: on a processor)."""

    text: float
    first: float
    later: float
    decode: float
    memory: float = 0.0

    def of(self, steps: int) -> float:
        """Seconds of a picture of so many steps."""
        return self.text + self.first + (steps - 1) * self.later + self.decode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--regions", nargs="+", type=int, default=[3, 8], help="how many, side by side")
    parser.add_argument("--edges", nargs="+", choices=[e.value for e in Edges], default=["hard", "soft"])
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--steps", type=int, default=2, help="that are run and timed, at least 2")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--base", choices=["sd15", BUILT_IN], default="sd15", help="the built-in base for a quick look")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=[p.value for p in Precision], default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--clock", choices=["wall", "processor"], default="wall",
        help="processor: time that all threads computed, for a machine that is busy with other work",
    )  # fmt: skip
    parser.add_argument("--no-memory", action="store_true", help="do not weigh a process of each way afterwards")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one way, to weigh the process


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    if arguments.steps < 2:
        raise SystemExit("--steps: expected at least 2, the first step is another than the later ones")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ways = ways_to_draw(arguments.regions, [Edges(edges) for edges in arguments.edges])
    base = prepared_base(arguments, max(arguments.regions))
    if arguments.only:
        picture(base, ways[arguments.only], arguments)
        return
    costs = measured(base, ways, arguments)
    del base
    memory = {name: cost.memory for name, cost in costs.items()}
    if arguments.device == "cpu" and not arguments.no_memory:
        memory = {name: weighed(name) for name in ways}
    print(json.dumps({**machine(), "precision": arguments.precision, "side": arguments.side, "clock": arguments.clock}))
    print(table(costs, memory))


def ways_to_draw(counts: Sequence[int], edges: Sequence[Edges]) -> dict[str, Way]:
    """Ways to prepare a picture, by name."""
    ways: dict[str, Way] = {ONE: one_prompt}
    for count in counts:
        for edge in edges:
            ways[f"{count} regions, {edge.value}"] = with_regions(count, edge)
        ways[f"{count} regions, published way"] = published_way(count)
    return ways


def one_prompt(base: Base, side: int) -> Prepared:
    return prompt_states(base, [PROMPT]), prompt_states(base, [NEGATIVE]), Attachment()


def with_regions(count: int, edges: Edges) -> Way:
    def prepare(base: Base, side: int) -> Prepared:
        regions = [Region(box, text, NEGATIVE) for box, text in zip(columns(count, side), texts(count))]
        plan = RegionPlan(regions, PROMPT, NEGATIVE, size=(side, side), edges=edges)
        states = plan.encode(base, guided=True)
        return states[1, :1], states[0, :1], regional_attention(base.unet, plan, states.states)

    return prepare


def published_way(count: int) -> Way:
    def prepare(base: Base, side: int) -> Prepared:
        regions = [
            PublishedRegion(box, encode_by_layer(base, text, NEGATIVE))
            for box, text in zip(columns(count, side), texts(count))
        ]
        away, towards = (PromptStates(half[None]) for half in encode_by_layer(base, PROMPT, NEGATIVE))
        return towards, away, published_attention(base.unet, regions, (side, side))

    return prepare


def columns(count: int, side: int) -> list[PixelBox]:
    """Boxes side by side, over the lower nine tenths."""
    borders = [round(i * side / count) for i in range(count + 1)]
    return [PixelBox(left, side // 10, right, side) for left, right in pairwise(borders)]


def texts(count: int) -> list[str]:
    return [f"a photo of <hero{i}a> <hero{i}b>, in a park, detailed" for i in range(count)]


def tokens_of(count: int) -> list[str]:
    return [f"<hero{i}{letter}>" for i in range(count) for letter in "ab"]


def prepared_base(arguments: argparse.Namespace, count: int) -> Base:
    """A base that knows the tokens of so many characters."""
    base = random_base() if arguments.base == "sd15" else load_base(BUILT_IN)
    for model in (*base.models.values(), base.vae):
        model.eval().requires_grad_(False)
    topology = base.topology
    vectors = {token: torch.randn(topology.layers, topology.text_width) * 0.01 for token in tokens_of(count)}
    return with_concept_tokens(base, vectors)[0].to(arguments.device)


def measured(base: Base, ways: dict[str, Way], arguments: argparse.Namespace) -> dict[str, Cost]:
    """Medians of each way's parts."""
    for way in ways.values() if base.device.type == "cuda" else [one_prompt]:
        picture(base, way, arguments)  # the first one is slower
    runs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            runs[name].append(picture(base, way, arguments))
            print(f"{name}: {runs[name][-1].of(PICTURE_STEPS):.2f} s", file=sys.stderr, flush=True)
    fields = [field.name for field in dataclasses.fields(Cost)]
    costs = {
        name: Cost(*(statistics.median(getattr(cost, field) for cost in each) for field in fields))
        for name, each in runs.items()
    }
    decode = statistics.median(cost.decode for each in runs.values() for cost in each)
    return {name: dataclasses.replace(cost, decode=decode) for name, cost in costs.items()}


@torch.no_grad()
def picture(base: Base, way: Way, arguments: argparse.Namespace) -> Cost:
    """Make one picture of few steps and time its parts."""
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    now = clock(base, arguments.clock)
    times = [now()]
    towards, away, attachment = way(base, arguments.side)
    times.append(now())
    scheduler = make_scheduler(base)
    scheduler.set_timesteps(PICTURE_STEPS, device=base.device)
    scheduler.timesteps = scheduler.timesteps[: arguments.steps]
    positions = arguments.side // base.topology.latent_factor
    noise = torch.randn(1, base.topology.latent_channels, positions, positions).to(base.device)
    with attachment:
        latents = denoise(
            base, scheduler, noise, towards, away, guidance=7.5, precision=Precision(arguments.precision),
            callback=lambda _: times.append(now()),
        )  # fmt: skip
    done = now()
    base.decode_latents(latents)
    later = statistics.median(end - start for start, end in pairwise(times[2:]))
    peak = torch.cuda.max_memory_allocated() / 1e9 if base.device.type == "cuda" else 0.0
    return Cost(times[1] - times[0], times[2] - times[1], later, now() - done, peak)


def clock(base: Base, kind: str) -> Callable[[], float]:
    """What tells the time, of work that is done."""

    def now() -> float:
        if base.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() if kind == "wall" else time.process_time()

    return now


def weighed(way: str) -> float:
    """GB at the peak of a process that makes one picture in one way."""
    command = [sys.executable, str(Path(__file__).with_name("compose.py")), *sys.argv[1:], "--only", way]
    process = subprocess.Popen(command)
    peak = wait_and_weigh([process])
    if process.returncode:
        raise SystemExit(f"weighing '{way}' failed")
    return peak


def table(costs: dict[str, Cost], memory: dict[str, float]) -> str:
    """Seconds and ratios to the one prompt."""
    one = costs[ONE]
    rows = [
        [
            name,
            f"{cost.text:.2f}",
            f"{cost.first:.2f}",
            f"{cost.later:.3f}",
            f"{cost.later / one.later:.3f}",
            f"{cost.of(PICTURE_STEPS):.1f}",
            f"{cost.of(PICTURE_STEPS) / one.of(PICTURE_STEPS):.3f}",
            f"{memory[name]:.2f} ({memory[name] / memory[ONE]:.3f})" if memory[ONE] else "-",
        ]
        for name, cost in costs.items()
    ]
    header = [
        "way",
        "text, s",
        "first step",
        "later step",
        "ratio",
        f"{PICTURE_STEPS} steps",
        "ratio",
        "peak GB (ratio)",
    ]
    return markdown_table(header, rows)
