"""A whole fusion at Stable Diffusion's size, on random weights of its shape and random concepts.

    python benchmarks/fusion_end_to_end.py [--concepts 3 14] [--placement feed-forward] [--xl] [--device cuda] [--full]
    python benchmarks/fusion_end_to_end.py --solve-only [--concepts 3 14] [--placement feed-forward] [--xl]

Recording: time over that of the bare forward passes that the statistics need (text encoder once, UNet at every step),
which are the same calls without anything to record. Keys and values read the prompts once more, and that counts
against us. Passes are timed one by one, bare and recorded in turn, and put together in the numbers in which the
shipped prompts and steps have them, so that the ratio does not depend on how few are run here; `--full` runs them all.
Then solving from these statistics, which is also what adding the last concept to a fused model takes; `--solve-only`
solves from synthetic ones of the same shapes, in minutes.

Operations, counted first. A layer with `in` inputs at `n` positions takes `2 n in out` in a pass and `n in^2 * 5/4`
for its moment (five eighths of a full product; less than `2 n in^2` by symmetry). Of a block of attention of width w
four inputs are distinct (queries, keys and values share one), of which a pass makes six products w x w, and the
feed-forward part adds three of width w and one of 4 w, of which it makes fourteen. So moments take 0.4 of the
products of the layers of attention, 0.7 with feed-forward; convolutions and attention itself, the larger part of a
pass, are not recorded. What was counted is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from fusion_synthetic import statistics_of, without_weights
from sd15 import random_base, random_xl_base
from torch.utils.flop_counter import FlopCounterMode

from mixshow.config.fuse import FuseOptions
from mixshow.core.stopwatch import PeakMemory, machine, resident_gb
from mixshow.edlora.concept import TEXT_WIDTHS, Concept
from mixshow.evaluation.page import markdown_table
from mixshow.fusion.collect import Collection, Statistics, key_value_statistics, spatial_statistics, text_statistics
from mixshow.fusion.fuse import Recorded, fuse
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.objective import Objective
from mixshow.fusion.origin import Origin
from mixshow.fusion.prompts import CAPTIONS, PICTURES, TEXT, filled
from mixshow.fusion.solvers import LBFGS
from mixshow.fusion.statistics_file import SUFFIX, StatisticsFile, open_statistics, write_statistics
from mixshow.lycoris import create_network
from mixshow.lycoris.naming import file_name
from mixshow.models import Base, load_base

T = TypeVar("T")
Recordings = dict[Stage, Statistics]
RANK = 4
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "self_attn.out_proj")
FEED_FORWARD = (*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "mlp.fc1", "mlp.fc2")
PLACEMENTS = {"attention": ATTENTION, "feed-forward": FEED_FORWARD}


# --- what is fused


def concept(base: Base, number: int, endings: Sequence[str]) -> Concept:
    """Random, of rank 4, on the layers with some endings of all models."""
    generator = torch.Generator().manual_seed(number)
    targets = [
        file_name(name, path, base.models)
        for name, model in base.models.items()
        for path, _ in model.named_modules()
        if path.endswith(tuple(endings))
    ]
    network = create_network(base.models, targets=targets, dim=RANK, generator=generator)
    for adapter in network.adapters.values():
        up = adapter.get_parameter("up")
        up.data = torch.randn(up.shape, generator=generator) * 0.01
    layers, width = base.topology.layers, base.topology.text_width
    embeddings = {f"<c{number}{part}>": torch.randn(layers, width, generator=generator) * 0.013 for part in "ab"}
    metadata = {TEXT_WIDTHS: list(base.text_widths)} if len(base.text_widths) > 1 else {}
    return Concept(embeddings, network.file_tensors(), metadata, f"concept {number}")


# --- recording


@dataclasses.dataclass(frozen=True)
class Passes:
    """Seconds of a pass through text encoder or UNet, median over concepts: as it is, and recorded."""

    text: float
    text_recorded: float
    states_recorded: float
    unet: float
    unet_recorded: float

    @property
    def ratio(self) -> float:
        """Of all passes of the shipped prompts and steps."""
        pictures = len(PICTURES) * Collection().steps
        bare = len(TEXT) * self.text + pictures * self.unet
        return (len(TEXT) * (self.text_recorded + self.states_recorded) + pictures * self.unet_recorded) / bare


class Recording:
    """Statistics of concepts one by one, and what the passes take."""

    def __init__(self, base: Base, members: Sequence[Member], collection: Collection) -> None:
        self._base, self._collection = base, collection
        self._layers = {stage: changed_layers(base, members, stage) for stage in Stage}
        self._times: dict[str, list[float]] = {}

    def of(self, member: Member | None, *, bare: bool = False) -> Recordings:
        """Record a concept, with its bare passes beside; None: the base on ordinary captions."""
        with contextlib.nullcontext(self._base) if member is None else member.in_place(self._base) as tuned:
            text, pictures = (
                list(CAPTIONS[: len(prompts)]) if member is None else filled(prompts, member.concept.text)
                for prompts in (self._collection.text_prompts, self._collection.picture_prompts)
            )
            passes = len(pictures) * self._collection.steps
            if bare:
                self._timed("text", len(text), lambda: text_statistics(tuned, [], text, padded=True))
                self._timed("unet", passes, lambda: spatial_statistics(tuned, [], pictures, self._collection))
            key_values = self._layers[Stage.KEY_VALUE]
            return {
                Stage.TEXT: self._timed(
                    "text_recorded", len(text),
                    lambda: text_statistics(tuned, self._layers[Stage.TEXT], text, padded=True),
                ),
                Stage.KEY_VALUE: self._timed(
                    "states_recorded", len(text),
                    lambda: key_value_statistics(tuned, key_values, text, every_position=True),
                ),
                Stage.SPATIAL: self._timed(
                    "unet_recorded", passes,
                    lambda: spatial_statistics(tuned, self._layers[Stage.SPATIAL], pictures, self._collection),
                ),
            }  # fmt: skip

    def _timed(self, what: str, count: int, do: Callable[[], T]) -> T:
        seconds, result = timed(self._base.device, do)
        self._times.setdefault(what, []).append(seconds / count)
        return result

    def passes(self) -> Passes:
        """Medians."""
        return Passes(**{what: statistics.median(times) for what, times in self._times.items()})

    def operations(self, member: Member) -> tuple[float, float]:
        """GFLOP of a pass of the UNet, bare, and what recording it adds."""
        counts = []
        layers: Sequence[Sequence[Layer]] = ([], self._layers[Stage.SPATIAL])
        for each in layers:
            once = dataclasses.replace(self._collection, steps=1)
            prompts = filled(once.picture_prompts[:1], member.concept.text)
            with member.in_place(self._base) as tuned, FlopCounterMode(display=False) as counter:
                spatial_statistics(tuned, each, prompts, once)
            counts.append(counter.get_total_flops() / 1e9)
        return counts[0], counts[1] - counts[0]


def timed(device: torch.device, do: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what came of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    result = do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, result


# --- the tables


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, nargs="+", default=[3, 14])
    parser.add_argument("--placement", choices=PLACEMENTS, default="attention")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=1, help="of text and pictures each (default: %(default)s)")
    parser.add_argument("--bare", type=int, default=3, help="concepts whose bare passes are timed too")
    parser.add_argument("--full", action="store_true", help="the shipped prompts and steps")
    parser.add_argument("--side", type=int, help="of the latents; default: the base's own, 64, of XL 128")
    parser.add_argument("--xl", action="store_true", help="Stable Diffusion XL's shape; takes 14 GB")
    parser.add_argument("--base", help="another base, such as puppets, to see whether it runs")
    parser.add_argument("--solve-only", action="store_true", help="from synthetic statistics; on the CPU")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(json.dumps(machine()))
    build = random_xl_base if arguments.xl else random_base
    if arguments.solve_only:
        base = without_weights(build)
    else:
        base = build() if arguments.base is None else load_base(arguments.base)
        base.to(arguments.device)
    for model in base.models.values():
        model.eval().requires_grad_(False)
    if arguments.solve_only:
        solve_only(base, arguments)
    else:
        run(base, arguments)


def solve_only(base: Base, arguments: argparse.Namespace) -> None:
    endings, count = PLACEMENTS[arguments.placement], max(arguments.concepts)
    members = [Member(concept(base, number, endings)) for number in range(count)]
    layers = {stage: changed_layers(base, members[:1], stage) for stage in Stage}
    with tempfile.TemporaryDirectory() as folder:
        stored = [in_file(statistics_of(layers, number), Path(folder), number) for number in range(count + 1)]
        print_solving(base, members, stored[:-1], stored[-1], Collection(), arguments.concepts)


def run(base: Base, arguments: argparse.Namespace) -> None:
    side = None if arguments.side is None else arguments.side * base.topology.latent_factor
    collection = Collection(
        text_prompts=TEXT if arguments.full else TEXT[: arguments.prompts],
        picture_prompts=PICTURES if arguments.full else PICTURES[: arguments.prompts],
        steps=Collection().steps if arguments.full else arguments.steps,
        width=side,
        height=side,
    )
    endings = PLACEMENTS[arguments.placement]
    members = [Member(concept(base, number, endings)) for number in range(max(arguments.concepts))]
    recording = Recording(base, members[:1], collection)
    own, added = recording.operations(members[0])
    print(f"a pass of the UNet: {own:.0f} GFLOP, its statistics: {added:.0f} more ({added / own:.2f})")
    print(f"model: {resident_gb():.1f} GB of memory", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        with PeakMemory() as peak:
            start = time.perf_counter()
            stored = [
                in_file(recording.of(member, bare=number < arguments.bare), Path(folder), number)
                for number, member in enumerate(members)
            ]
            anchor = in_file(recording.of(None), Path(folder), len(members))
            recording_seconds = time.perf_counter() - start
        print_recording(recording.passes(), len(members), recording_seconds, peak.gb)
        print_solving(base, members, stored, anchor, collection, arguments.concepts)


def in_file(recorded: Recordings, folder: Path, number: int) -> StatisticsFile:
    """Statistics as a fusion keeps them until they are solved."""
    path = folder / f"{number}{SUFFIX}"
    origin = Origin("", "", str(number), (), 1.0, 1.0, (), (), True, 1, 1, 1, 0)
    write_statistics(path, {name: each for own in recorded.values() for name, each in own.items()}, origin)
    return open_statistics(path)


def print_recording(passes: Passes, concepts: int, seconds: float, peak: float) -> None:
    print(markdown_table(
        ["pass", "bare, s", "recorded, s", "ratio"],
        [
            ["text encoder, a prompt", f"{passes.text:.3f}", f"{passes.text_recorded:.3f}",
             f"{passes.text_recorded / passes.text:.2f}"],
            ["keys and values, a prompt", "-", f"{passes.states_recorded:.3f}", "-"],
            ["UNet, a step of a picture", f"{passes.unet:.3f}", f"{passes.unet_recorded:.3f}",
             f"{passes.unet_recorded / passes.unet:.2f}"],
        ],
    ))  # fmt: skip
    print(f"recording over bare passes, shipped prompts and steps: {passes.ratio:.2f}")
    print(
        f"recording {concepts} concepts here, with bare passes: {seconds:.0f} s, memory beside the model {peak:.2f} GB"
    )


def print_solving(
    base: Base,
    members: Sequence[Member],
    stored: Sequence[StatisticsFile],
    anchor: StatisticsFile,
    collection: Collection,
    counts: Sequence[int],
) -> None:
    """Solve from statistics for each number of concepts; also what adding the last of them takes."""
    defaults = FuseOptions(base="", concepts=[], output=Path())
    objective = Objective(defaults.solver.ridge, defaults.anchor.weight)
    solvers = dict.fromkeys(Stage, LBFGS(precondition=defaults.solver.precondition))
    rows = []
    for count in counts:
        at_hand = dict.fromkeys(Stage, Recorded([file.layers for file in stored[:count]], anchor.layers))
        checking, _ = timed(base.device, stored[count - 1].check_numbers)
        started = time.process_time()
        with PeakMemory() as peak:
            seconds, fusion = timed(
                base.device,
                partial(fuse, base, members[:count], collection, objective, solvers, recorded=at_hand),
            )
        taken = time.process_time() - started
        both = f"{checking + seconds:.1f}"
        rows.append(
            [count, len(fusion.changes), f"{seconds:.1f}", f"{taken:.1f}", f"{checking:.1f}", both, f"{peak.gb:.2f}"]
        )
    heading = [
        "concepts", "layers", "solving, s", "processors', s", "looking through the last one's file, s",
        "adding the last, s", "memory beside the model, GB",
    ]  # fmt: skip
    print(markdown_table(heading, rows))


if __name__ == "__main__":
    main()
