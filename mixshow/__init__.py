"""mixshow: train characters, fuse them into one Stable Diffusion model, and put them on stage together."""

from mixshow.core.version import __version__

__all__ = ["__version__"]
