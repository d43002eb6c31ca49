"""Metadata of network files as kohya's sd-scripts writes them, and the two hashes by which programs know a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

_LEGACY_START, _LEGACY_SIZE = 0x100000, 0x10000


def base_version(models: Mapping[str, nn.Module]) -> str:
    """sd-scripts' word for a base, from its models: `sd_v1`, `sd_v2`, `sdxl_base_v1-0`; empty for other models."""
    config = getattr(models.get("unet"), "config", None)
    if config is None:
        return ""
    if "text_encoder_2" in models or getattr(config, "addition_embed_type", None) == "text_time":
        return "sdxl_base_v1-0"
    return "sd_v2" if getattr(config, "cross_attention_dim", None) == 1024 else "sd_v1"


def network_metadata(
    models: Mapping[str, nn.Module],
    *,
    algo: str,
    dim: float | None = None,
    alpha: float | None = None,
    options: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The metadata every network file should have.

    Args:
        algo: the algorithm, or several with commas.
        dim: rank of the network; None: it has none, or several.
        options: the algorithm's options; values by file name where modules differ.
        more: further `ss_...` entries of a training: steps, rates, captions. Values are written as text.
    """
    version = base_version(models)
    arguments = {"algo": algo, **(options or {})}
    found = {
        "ss_v2": version.startswith("sd_v2"),
        "ss_base_model_version": version,
        "ss_network_module": "networks.lora" if algo in ("lora", "locon") and not options else "lycoris.kohya",
        "ss_network_dim": dim,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps(
            {key: value if isinstance(value, Mapping) else str(value) for key, value in arguments.items()}
        ),
        **(more or {}),
    }
    return {key: value if isinstance(value, str) else str(value) for key, value in found.items()}


def options_told(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Options of a network that its file's metadata tells: `ss_network_args`, or a concept file's `network_options`.

    Returns:
        Values as they were written; by file name where modules differ.
    """
    of_concept = _entries(metadata.get("mixshow")).get("network_options")
    return _entries(metadata.get("ss_network_args")) | _entries(of_concept)


def options_of(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What is told of one module, by its file name."""
    return {
        option: value[name] if isinstance(value, Mapping) else value
        for option, value in told.items()
        if not isinstance(value, Mapping) or name in value
    }


def _entries(value: Any) -> dict[str, Any]:
    """A metadata entry that holds several, as JSON text or read; none where it is something else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return {}
    return value if isinstance(value, dict) else {}


def with_hashes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with `sshs_model_hash` and `sshs_legacy_hash`, as sd-scripts computes them.

    Both are taken of the file as it would be with its `ss_...` metadata only: the first of the tensors' bytes, the
    second of 64 kB from the first megabyte on.

    Args:
        tensors: on the CPU, contiguous.
    """
    counted = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    contents = memoryview(save(dict(tensors), counted))
    header = 8 + int.from_bytes(contents[:8], "little")
    return {
        **metadata,
        "sshs_model_hash": hashlib.sha256(contents[header:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(contents[_LEGACY_START : _LEGACY_START + _LEGACY_SIZE]).hexdigest()[:8],
    }
