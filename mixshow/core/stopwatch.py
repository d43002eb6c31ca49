"""How long stages of a run took, and what machine it ran on."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch


class Stopwatch:
    """Seconds by stage; a stage entered twice adds up.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.stage("training"):
        ...     pass
        >>> list(watch.seconds) == ["training"]
        True
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block under a name."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    @property
    def total(self) -> float:
        """Seconds since the stopwatch was made."""
        return time.perf_counter() - self._started


def peak_memory_gb(usage: resource.struct_rusage | None = None) -> float:
    """Largest resident size in GB: of this process so far, or of one that ended with this usage."""
    peak = (usage or resource.getrusage(resource.RUSAGE_SELF)).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """What a reader of figures wants to know of the machine; nothing that identifies it."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "bf16_instructions": bool(torch.cpu._is_avx512_bf16_supported()) if platform.machine() == "x86_64" else False,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
