"""Which base this is: a hash of its weights, tokens and noise schedule, without reading every bit into a digest."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from mixshow.models.base import Base

_SAMPLES = 64  # values of each tensor that are hashed in their places


def weights_hash(base: Base) -> str:
    """A short hash of all that decides what a base's text encoders and UNet do, the same on every device.

    Of each parameter go in its name, its shape, some evenly spread values, and the sum of all values' bits as whole
    numbers, which is exact in any order. Precisions that hold the same values hash the same. The autoencoder takes no
    part.
    """
    schedule = {key: value for key, value in base.scheduler_config.items() if not key.startswith("_")}
    about = [schedule, base.zero_empty_prompt, list(base.vocabulary.tokens)]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for model, root in base.models.items():
        for name, parameter in root.named_parameters():
            digest.update(f"{model}.{name}{tuple(parameter.shape)}".encode())
            digest.update(digits(parameter.detach()))
    return digest.hexdigest()[:16]


def digits(values: Tensor) -> bytes:
    """What a tensor adds to a hash: some evenly spread values, and the sum of all values' bits as whole numbers."""
    bits = values.float().flatten().view(torch.int32)
    spread = bits[:: max(1, len(bits) // _SAMPLES)][:_SAMPLES]
    return torch.cat([spread.long(), bits.sum(dtype=torch.int64).reshape(1)]).cpu().numpy().tobytes()
