"""What a training run computes on: devices, precision and processes, through accelerate."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState


def make_accelerator(mixed_precision: str) -> Accelerator:
    """An Accelerator for a new run; without the reset accelerate refuses a second one of other precision."""
    AcceleratorState._reset_state()
    # Without a GPU accelerate takes several processes for so many single ones unless it is told.
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return Accelerator(mixed_precision=mixed_precision, cpu=several and not torch.cuda.is_available())
