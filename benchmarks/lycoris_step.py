"""Forward and backward of one changed layer, for every algorithm, beside lycoris-lora.

    python benchmarks/lycoris_step.py --width 320 --layer linear

Processor time on one thread, minimum of some repeats, the three ways in turn: the frozen layer alone, lycoris-lora with
its default settings, lycoris-lora with `bypass_mode` where it has one, and ours. 4,096 rows, or a 64x64 picture.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import lycoris.modules as peer
import torch
from torch import Tensor, nn

from mixshow.evaluation.page import markdown_table
from mixshow.lycoris import create_network

# Ours, theirs (None: they have none), rank, options of both.
CASES: Mapping[str, tuple[str, str | None, int, Mapping[str, Any]]] = {
    "LoCon r16": ("locon", "LoConModule", 16, {}),
    "DoRA r16": ("locon", "LoConModule", 16, {"weight_decompose": True}),
    "LoHa r4": ("loha", "LohaModule", 4, {}),
    "LoHa r16": ("loha", "LohaModule", 16, {}),
    "LoKr r4": ("lokr", "LokrModule", 4, {}),
    "LoKr factor 8, whole": ("lokr", "LokrModule", 10000, {"factor": 8}),
    "LoKr factor 8, r16": ("lokr", "LokrModule", 16, {"factor": 8}),
    "DyLoRA r16": ("dylora", "DyLoraModule", 16, {"block_size": 4}),
    "GLoRA r16": ("glora", "GLoRAModule", 16, {}),
    "GLoKr factor 8, r16": ("glokr", None, 16, {"factor": 8}),
    "(IA)^3": ("ia3", "IA3Module", 4, {}),
    "full": ("full", "FullModule", 4, {}),
    "Diag-OFT 8": ("diag-oft", "DiagOFTModule", 8, {}),
    "BOFT 16": ("boft", "ButterflyOFTModule", 16, {}),
    "T-LoRA r16": ("tlora", "TLoraModule", 16, {}),
}
NO_BYPASS = {"full", "boft", "dylora"}  # for DyLoRA theirs fails
NO_KERNELS = {"tlora"}  # theirs fails on padded convolutions
COLUMNS = {
    "theirs, x frozen": ("default", "frozen"),
    "ours, x frozen": ("ours", "frozen"),
    "faster than default": ("default", "ours"),
    "faster than bypass": ("bypass", "ours"),
}
ROWS = (4, 1024)
PICTURE = (64, 64)


class Model(nn.Module):
    """One layer in a model, as networks are attached to models."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--layer", choices=("linear", "conv3x3"), default="linear")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.only:
        best = measure(name, arguments.width, arguments.layer, arguments.repeats)
        rows.append([name, f"{1000 * best['frozen']:.1f}", *(ratio(best, *pair) for pair in COLUMNS.values())])
    print(f"{arguments.layer}, width {arguments.width}")
    print(markdown_table(["case", "frozen, ms", *COLUMNS], rows))


def ratio(best: Mapping[str, float], above: str, below: str) -> str:
    return f"{best[above] / best[below]:.2f}" if above in best else "-"


def measure(name: str, width: int, layer: str, repeats: int) -> dict[str, float]:
    """Least seconds of a forward and backward pass, by way."""
    algo, module, dim, options = CASES[name]
    x = torch.randn(*ROWS, width) if layer == "linear" else torch.randn(1, width, *PICTURE)
    models = {"frozen": make(width, layer), "ours": make(width, layer)}
    network = create_network({"model": models["ours"]}, algo=algo, dim=dim, alpha=1.0, **options)
    for way, bypass in (("default", False), ("bypass", True)):
        # Their bypass silently leaves out the decomposition, so that it is another computation.
        if bypass and (algo in NO_BYPASS or "weight_decompose" in options):
            continue
        if module is None or (layer != "linear" and algo in NO_KERNELS):
            continue
        models[way] = make(width, layer)
        changed = getattr(peer, module)(
            "layer", models[way].layer, 1.0, lora_dim=dim, alpha=1.0, bypass_mode=bypass, **options
        )
        changed.apply_to()
    best: dict[str, float] = {}
    with network:
        for _ in range(repeats + 1):
            for way, model in models.items():
                best[way] = min(best.get(way, float("inf")), seconds(model, x))
    return best


def make(width: int, layer: str) -> Model:
    """A frozen layer, the same for every way."""
    torch.manual_seed(0)
    made = nn.Linear(width, width) if layer == "linear" else nn.Conv2d(width, width, 3, padding=1)
    return Model(made).requires_grad_(False)


def seconds(model: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Processor time of one forward and backward pass."""
    x = x.detach().requires_grad_(True)
    start = time.process_time()
    output = model(x)
    output.backward(torch.ones_like(output))
    return time.process_time() - start


if __name__ == "__main__":
    main()
