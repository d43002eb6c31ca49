"""The training loop all stages share: cosine schedule, moving average, atomic checkpoints, exact resuming."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train. A batch must be a pure function of its step: then resuming is exact."""

    steps: int
    rate: float
    warmup: int = 100
    ema: float = 0.999
    weight_decay: float = 1e-2
    clip: float = 1.0

    def rate_at(self, step: int, fresh_at: int = 0) -> float:
        """The rate of a step; the warm-up counts from the step at which the optimizer was new."""
        warm = min(1.0, (step - fresh_at + 1) / self.warmup)
        return self.rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps))))

    def ema_at(self, step: int) -> float:
        return min(self.ema, (step + 1) / (step + 10))


def device() -> torch.device:
    """CUDA when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(on: torch.device) -> torch.autocast:
    """bfloat16 where it is the fast choice: on CUDA and on processors with bfloat16 instructions."""
    fast = on.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(on.type, torch.bfloat16, enabled=fast)


def step_generators(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The random numbers of one step."""
    rng = np.random.default_rng([seed, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def checkpoint_path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.checkpoint.pt"


def load_average(folder: Path, stage: str, modules: Mapping[str, nn.Module]) -> int:
    """Fill the modules with the stage's moving-average weights; returns the step they are from."""
    path = checkpoint_path(folder, stage)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run the stage {stage!r} first")
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state["average"][name])
    return int(state["step"])


def save_atomically(value: Any, path: Path) -> None:
    """Write beside the target and rename, so that an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    torch.save(value, temporary)
    temporary.replace(path)


@contextlib.contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Collects Ctrl-C and termination signals, so that a step is never left half done."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, lambda number, _: received.append(number)) for kind in kinds]
    try:
        yield received
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


class Trainer:
    """Trains modules on a loss that is a function of the step number."""

    def __init__(self, folder: Path, stage: str, modules: Mapping[str, nn.Module], plan: Plan) -> None:
        self.folder, self.stage, self.modules, self.plan = folder, stage, dict(modules), plan
        self.step = self.fresh_at = 0
        parameters: list[Tensor] = [p for module in self.modules.values() for p in module.parameters()]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            parameters, lr=plan.rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True
        )
        self.average = [p.detach().clone() for p in parameters]
        self._resume()

    def _resume(self) -> None:
        path = checkpoint_path(self.folder, self.stage)
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        if state["optimizer"] is not None:  # restored weights have none
            self.optimizer.load_state_dict(state["optimizer"])
        averages = []
        for name, module in self.modules.items():
            averages += [state["average"][name][key] for key, _ in module.named_parameters()]
        for mine, saved in zip(self.average, averages, strict=True):
            mine.copy_(saved)
        self.step, self.fresh_at = state["step"], state.get("fresh_at", 0)

    def save(self) -> None:
        """Write everything that resuming needs."""
        remaining = iter(self.average)
        averages = {}
        for name, module in self.modules.items():
            averages[name] = module.state_dict() | {key: next(remaining) for key, _ in module.named_parameters()}
        state = {
            "step": self.step,
            "fresh_at": self.fresh_at,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "average": averages,
            "optimizer": self.optimizer.state_dict(),
        }
        save_atomically(state, checkpoint_path(self.folder, self.stage))

    def run(self, loss_of: Callable[[int], Tensor], stop_at: int | None = None) -> None:
        """Train up to the plan's last step (or ``stop_at``); an interruption still leaves a checkpoint."""
        last = self.plan.steps if stop_at is None else min(stop_at, self.plan.steps)
        saved, shown = time.monotonic(), None
        for module in self.modules.values():
            module.train()
        bar = tqdm(range(self.step, last), self.stage, initial=self.step, total=last, mininterval=5)
        with bar, _interruptions() as interruptions:
            for step in bar:
                for group in self.optimizer.param_groups:
                    group["lr"] = self.plan.rate_at(step, self.fresh_at)
                loss = loss_of(step)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, self.plan.clip)
                self.optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(self.average, self.parameters, 1 - self.plan.ema_at(step))
                self.step = step + 1
                if step % 20 == 0:
                    value = float(loss.detach())
                    shown = value if shown is None else 0.9 * shown + 0.1 * value
                    bar.set_postfix(loss=f"{shown:.4f}", refresh=False)
                if interruptions or time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self.save()
                    saved = time.monotonic()
                if interruptions:
                    raise KeyboardInterrupt
        self.save()
