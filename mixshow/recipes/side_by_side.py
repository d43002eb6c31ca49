"""Several trainings side by side.

One thread each makes more of a processor than all threads for one after the other: three trainings on two cores take
0.8 of the time (docs/performance.md). On an accelerator they are trained in turn.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mixshow.core.errors import MixshowError
from mixshow.core.stopwatch import cores, wait_and_weigh
from mixshow.recipes.train import train


def train_all(files: Sequence[Path]) -> float:
    """Train the concepts that options files describe, on a processor at the same time, each in a process of its own.

    Ctrl-C reaches each of them: all write a checkpoint, and all are resumed by the next call.

    Returns:
        GB of memory that the processes held at most, all together; 0 where this one did the training.

    Raises:
        MixshowError: one of them failed; its own message is on standard error.
    """
    if torch.cuda.is_available() or cores() == 1:
        for file in files:
            train(file)
        return 0.0
    running = [_start(file, place, threads=max(1, cores() // len(files))) for place, file in enumerate(files)]
    try:
        peak = wait_and_weigh(running)
    except BaseException:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.wait()
        raise
    codes = [process.returncode for process in running]
    if 130 in codes:
        raise KeyboardInterrupt
    failed = [str(file) for file, code in zip(files, codes) if code]
    if failed:
        raise MixshowError(f"training stopped ({', '.join(failed)}); the reason stands above")
    return peak


def _start(file: Path, place: int, *, threads: int) -> subprocess.Popen[bytes]:
    """One training, its progress bar on a line of its own.

    In a session of its own, so that a terminal's Ctrl-C comes once, from here.
    """
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_POSITION": str(place)}
    command = [sys.executable, "-m", "mixshow", "train", str(file)]
    return subprocess.Popen(command, env=surroundings, start_new_session=True)
