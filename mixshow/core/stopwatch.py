"""How long stages of a run took, and what machine it ran on."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import psutil
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


def peak_memory_gb() -> float:
    """Largest resident size of this process so far, in GB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def wait_and_weigh(processes: Sequence[subprocess.Popen[bytes]], *, every: float = 0.2) -> float:
    """Wait for processes; returns the largest resident size they had together, in GB.

    Measured from outside: what the system says of an ended child's peak counts its parent's memory too.

    Args:
        every: seconds between two looks.
    """
    peak = 0
    while any(process.poll() is None for process in processes):
        peak = max(peak, sum(_resident(process.pid) for process in processes))
        time.sleep(every)
    return peak / 1e9


def resident_gb() -> float:
    """Resident size of this process now, in GB."""
    return _resident(None) / 1e9


def _resident(pid: int | None) -> int:
    """Bytes of a process (None: this one); 0 if it ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _hand_back_memory() -> None:
    """Give the system what was freed: kept, it would hide what is taken next."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries than GNU's have no such call
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """The largest resident size of this process within a block, above that at its start; looked at every so often.

    Example:
        >>> with PeakMemory() as peak:
        ...     pass
        >>> peak.gb >= 0
        True
    """

    def __init__(self, *, every: float = 0.05) -> None:
        self.gb = 0.0
        self._every = every
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        _hand_back_memory()
        self._start = resident_gb()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()
        self._look()

    def _look(self) -> None:
        self.gb = max(self.gb, resident_gb() - self._start)

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self._look()


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
