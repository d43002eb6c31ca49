"""Module names in network files: `lora_unet_<path with _>` and `lora_te_text_model_...` (kohya, LyCORIS).

Underscores cannot be turned back into dots, so names are always looked up among a model's own modules.
transformers 5 dropped `text_model.` from CLIP's module paths; files and published formats keep it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
_TEXT_ROOT = "text_model."


def canonical_path(model: str, path: str) -> str:
    """A module's path as files spell it: text encoder paths start with `text_model.` whatever the library does."""
    if model == "text_encoder" and not path.startswith(_TEXT_ROOT):
        return _TEXT_ROOT + path
    return path


def file_name(model: str, path: str) -> str:
    """The name of a module in network files."""
    return f"{PREFIXES[model]}_{canonical_path(model, path).replace('.', '_')}"


def modules_by_file_name(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Every module with a weight, by its name in network files."""
    return {
        file_name(model, path): module
        for model, root in models.items()
        for path, module in root.named_modules()
        if path and isinstance(getattr(module, "weight", None), nn.Parameter)
    }


def modules_by_canonical_path(model: str, root: nn.Module) -> dict[str, nn.Module]:
    """Every module with a weight, by its canonical path."""
    return {
        canonical_path(model, path): module
        for path, module in root.named_modules()
        if path and isinstance(getattr(module, "weight", None), nn.Parameter)
    }
