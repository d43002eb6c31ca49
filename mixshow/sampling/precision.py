"""What number type the UNet computes in."""

from __future__ import annotations

from enum import Enum

import torch


class Precision(Enum):
    """Number type of the UNet's arithmetic while sampling. `AUTO`: bf16 where it is the fast choice, else fp32."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


_TYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def resolve(precision: Precision, device: torch.device) -> Precision:
    """What `AUTO` means on a device; other values stay.

    Bf16 is the faster type on CUDA and on processors with bfloat16 instructions (docs/performance.md).
    """
    if precision is not Precision.AUTO:
        return precision
    if device.type == "cuda":
        return Precision.BF16 if torch.cuda.is_bf16_supported() else Precision.FP16
    fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return Precision.BF16 if fast else Precision.FP32


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context in which a model computes in that type."""
    kind = _TYPES.get(resolve(precision, device))
    return torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None)
