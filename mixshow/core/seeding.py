"""Random numbers drawn from counters.

Every draw is a function of (seed, what it is for, its number), so that training that stops and resumes sees the
same numbers as training that never stopped, and two processes never share a stream by accident.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

Counter = int | str


def derived_seed(seed: int, *counters: Counter) -> int:
    """A 63-bit seed for one stream, e.g. `derived_seed(0, "noise", step)`."""
    text = "/".join(str(part) for part in (seed, *counters))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, *counters: Counter) -> torch.Generator:
    """A CPU generator for one stream. Draw on the CPU and move: results then do not depend on the device."""
    return torch.Generator("cpu").manual_seed(derived_seed(seed, *counters))


def numpy_generator(seed: int, *counters: Counter) -> np.random.Generator:
    """The same for numpy."""
    return np.random.default_rng(derived_seed(seed, *counters))
