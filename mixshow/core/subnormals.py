"""Numbers too small for full precision, with which processors compute some hundred times slower.

They come where values fade out: probabilities of an attention that is sure, gradients behind it. In training on a CPU a
few of them made steps ten times as long (docs/log.md). What is below 1e-38 makes no difference to anything here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Within the block such numbers are 0 on the CPU, in this thread and in those that it starts; then as before.

    Nothing changes where the processor cannot do it.

    Example:
        >>> import torch
        >>> with subnormals_flushed():
        ...     print((torch.tensor([1e-30]) * torch.tensor([1e-10])).item())
        0.0
    """
    import torch

    before = bool((torch.tensor([1e-30]) * torch.tensor([1e-10])).item() == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
