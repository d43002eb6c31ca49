"""Packages of extras are asked for where they are used."""

from __future__ import annotations

import importlib
from types import ModuleType

from mixshow.core.errors import MixshowError


def optional_import(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a module of an extra.

    Raises:
        MixshowError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MixshowError(
            f"{purpose} needs the package '{module}' ({error}); install it with: pip install 'mixshow[{extra}]'"
        ) from error
