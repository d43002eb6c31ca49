"""Denoising, scenes, regions, conditions; and all of it as a pipeline of diffusers, `RegionalPipeline`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixshow.sampling.pipeline import RegionalPipeline

__all__ = ["RegionalPipeline"]


def __getattr__(name: str) -> Any:
    """Loaded when asked for: other parts need only some of the modules, and pipelines take long to import."""
    if name != "RegionalPipeline":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from mixshow.sampling.pipeline import RegionalPipeline

    return RegionalPipeline
