"""Networks on a UNet of Stable Diffusion 1.5's shape, beside lycoris-lora and PEFT.

    python benchmarks/lycoris_unet.py step [--algos locon loha] [--size 16]
    python benchmarks/lycoris_unet.py attach
    python benchmarks/lycoris_unet.py file

`step`: processor time and memory of a training step (forward and backward, one picture), preset attn-mlp. The ways take
turns on one UNet of random weights, each attached for its own steps only: without a network (the text states alone
get gradients), ours, lycoris-lora with its default settings and with `bypass_mode`, PEFT where it has the same
algorithm. Peak: resident memory at its highest less what was resident before (Linux). Kept: bytes that the forward
pass keeps for the backward pass in tensors of the shape of a changed weight; parameters are not counted.

`attach`: making a network, and attaching and detaching it. `file`: loading and merging a file of about 150 MB.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from lycoris.logging import logger as peer_logger
from lycoris.wrapper import create_lycoris_from_weights
from lycoris_step import CASES
from lycoris_ways import Way, ours, quick_decompositions, theirs, ways_of
from torch import Tensor, nn

from mixshow.evaluation.page import markdown_table
from mixshow.lycoris import create_network, load_network
from mixshow.lycoris.files import write_network_file
from mixshow.lycoris.metadata import network_metadata
from mixshow.lycoris.presets import Target, select_targets

PRESET, TOKENS, FILE_BYTES = "attn-mlp", 77, 150e6
WAYS = ("frozen", "ours", "default", "bypass", "PEFT")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step: processor seconds; bytes at the peak; bytes kept in the shape of a weight."""

    seconds: float
    peak: float
    kept: float

    def least(self, other: Cost | None) -> Cost:
        """The lesser of both, each by itself."""
        return self if other is None else Cost(*map(min, dataclasses.astuple(self), dataclasses.astuple(other)))


def main() -> None:
    """Print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("step", "attach", "file"))
    parser.add_argument("--size", type=int, default=64, help="side of the latents; 64 is a picture of 512 pixels")
    parser.add_argument("--algos", nargs="+", choices=sorted({case[0] for case in CASES.values()}))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    peer_logger.setLevel("ERROR")
    cases = [name for name in arguments.cases if arguments.algos is None or CASES[name][0] in arguments.algos]
    unet = UNet2DConditionModel(
        block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
    ).requires_grad_(False)
    targets = select_targets({"model": unet}, PRESET)
    print(f"{PRESET}: {len(targets)} layers; {arguments.threads} thread(s)", flush=True)
    if arguments.what == "step":
        print_steps(unet, targets, cases, arguments.size, arguments.repeats)
    elif arguments.what == "attach":
        print_attaching(unet, targets, cases)
    else:
        print_file(unet, targets)


# --- steps


def print_steps(unet: nn.Module, targets: Sequence[Target], cases: Sequence[str], size: int, repeats: int) -> None:
    times, memory = [], []
    for name in cases:
        with quick_decompositions():
            ways = ways_of(name, unet, targets)
        costs = measure(unet, targets, ways, size, repeats)
        frozen, own = costs["frozen"], costs["ours"]
        spent = [f"{costs[way].seconds / frozen.seconds:.2f}" if way in costs else "-" for way in WAYS[1:]]
        won = [f"{costs[way].seconds / own.seconds:.2f}" if way in costs else "-" for way in WAYS[2:]]
        times.append([name, f"{frozen.seconds:.1f}", *spent, *won])
        peaks = [f"{costs[way].peak / 1e9:.2f}" if way in costs else "-" for way in WAYS]
        memory.append([name, *peaks, *(f"{costs[way].kept / 1e6:.0f}" if way in costs else "-" for way in WAYS[1:])])
        print(f"{name}: {costs}", flush=True)
        del ways
    of_frozen = [f"{way}, x frozen" for way in WAYS[1:]]
    print(markdown_table(["case", "frozen, s", *of_frozen, *(f"faster than {way}" for way in WAYS[2:])], times))
    kept = [f"kept, MB: {way}" for way in WAYS[1:]]
    print(markdown_table(["case", *(f"peak, GB: {way}" for way in WAYS), *kept], memory))


def measure(
    unet: nn.Module, targets: Sequence[Target], ways: Mapping[str, Way], size: int, repeats: int
) -> dict[str, Cost]:
    """Least costs of a step, by way; a small picture first, for whatever is done once only."""
    least: dict[str, Cost] = {}
    for side in (8, *[size] * repeats):
        for name, way in ways.items():
            way.attach()
            try:
                cost = step(unet, targets, side, way.parameters)
            finally:
                way.detach()
            for parameter in way.parameters:
                parameter.grad = None
            if side == size:
                least[name] = cost.least(least.get(name))
    return least


def step(unet: Any, targets: Sequence[Target], side: int, trained: Sequence[nn.Parameter]) -> Cost:
    """One forward and backward pass."""
    latents = torch.randn(1, unet.config.in_channels, side, side)
    states = torch.randn(1, TOKENS, unet.config.cross_attention_dim, requires_grad=True)
    shapes = {shape for target in targets for shape in weight_shapes(target.module)}
    parameters = {storage(tensor) for tensor in (*unet.parameters(), *trained)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape in shapes and storage(tensor) not in parameters:
            kept[storage(tensor)] = tensor.numel() * tensor.element_size()
        return tensor

    before = reset_peak()
    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = unet(latents, 500, encoder_hidden_states=states).sample.square().mean()
    loss.backward()
    return Cost(time.process_time() - start, resident("VmHWM") - before, sum(kept.values()))


def weight_shapes(module: Any) -> list[torch.Size]:
    """Of a layer's weight as it is, as a matrix, and that transposed."""
    matrix = module.weight.flatten(1)
    return [module.weight.shape, matrix.shape, matrix.T.shape]


def storage(tensor: Tensor) -> int:
    """The same for all views of the same memory."""
    return tensor.untyped_storage().data_ptr()


def reset_peak() -> int:
    """Bytes resident now, from which the peak is counted anew."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(which: str) -> int:
    """Bytes, from Linux's account of this process; 0 elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{which}:"):
                return 1024 * int(line.split()[1])
    return 0


# --- on and off, files


def print_attaching(unet: nn.Module, targets: Sequence[Target], cases: Sequence[str]) -> None:
    rows = []
    for name in cases:
        with quick_decompositions():
            makers = {"ours": lambda name=name: ours(name, unet, targets)}
            if CASES[name][1] is not None:
                makers["theirs"] = lambda name=name: theirs(name, targets, bypass=False)
            row: list[object] = [name]
            for make in makers.values():
                making, way = timed(make)
                on_and_off = min(timed(way.attach)[0] + timed(way.detach)[0] for _ in range(5))
                row += [f"{making:.3f}", f"{on_and_off:.4f}"]
                del way
        rows.append([*row, *["-"] * (5 - len(row))])
    headings = [f"{whose}: {what}, s" for whose in ("ours", "theirs") for what in ("making", "attach + detach")]
    print(markdown_table(["case", *headings], rows))


def print_file(unet: nn.Module, targets: Sequence[Target]) -> None:
    """LoRA of the rank that makes the file so large, in half precision, on all layers."""
    shapes = [tuple(target.module.get_parameter("weight").shape) for target in targets]
    per_rank = sum(2 * (shape[0] + math.prod(shape[1:])) for shape in shapes)
    network = create_network({"model": unet}, targets=targets, dim=round(FILE_BYTES / per_rank), alpha=1.0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        write_network_file(path, network.file_tensors(), network_metadata({}, algo="locon"), dtype=torch.float16)
        print(f"{path.stat().st_size / 1e6:.0f} MB, rank {round(FILE_BYTES / per_rank)}")
        for _ in range(2):
            loading, loaded = timed(lambda: load_network({"model": unet}, path))
            merging, _ = timed(loaded.merge)
            unmerging, _ = timed(loaded.unmerge)
            rows.append(["ours", *(f"{seconds:.2f}" for seconds in (loading, merging, loading + merging, unmerging))])
        loading, (peer_network, _) = timed(lambda: create_lycoris_from_weights(1.0, str(path), unet))
        merging, _ = timed(peer_network.merge_to)
        rows.append(["lycoris-lora", *(f"{seconds:.2f}" for seconds in (loading, merging, loading + merging)), "-"])
    print(markdown_table(["whose", "load, s", "merge, s", "both, s", "unmerge, s"], rows))


def timed(do: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds, and what came of it."""
    gc.collect()
    start = time.process_time()
    result = do()
    return time.process_time() - start, result


if __name__ == "__main__":
    main()
