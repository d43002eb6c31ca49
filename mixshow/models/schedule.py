"""A base's noise schedule: samplers over it, and what a prediction of the UNet says about noise."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from mixshow.core.errors import MixshowError, did_you_mean

if TYPE_CHECKING:
    from mixshow.models.base import Base


def make_scheduler(base: Base, name: str = "DPMSolverMultistepScheduler", **overrides: Any) -> SchedulerMixin:
    """A sampler over the base's noise schedule.

    Args:
        name: any scheduler class of diffusers; the word `Scheduler` at its end may be left out.
        overrides: options of that scheduler.

    Raises:
        MixshowError: no such scheduler, or an option it does not have.
    """
    kind = scheduler_class(name, overrides)
    return kind.from_config(dict(base.scheduler_config), **overrides)


def scheduler_class(name: str, options: Iterable[str] = ()) -> Any:
    """The scheduler of diffusers of that name, as for `make_scheduler`, if it has these options.

    Raises:
        MixshowError: no such scheduler, one that needs another kind of model or more packages, or an option it does
            not have.
    """
    schedulers = [entry for entry in dir(diffusers.schedulers) if entry.endswith("Scheduler")]
    full_name = name if name in schedulers else f"{name}Scheduler"
    if full_name not in schedulers:
        raise MixshowError(f"scheduler '{name}': not one of diffusers' schedulers{did_you_mean(name, schedulers)}")
    kind: Any = getattr(diffusers, full_name, None)
    if packages := getattr(kind, "_backends", None):  # diffusers' stand-in for a class that cannot be imported
        raise MixshowError(f"scheduler '{name}': needs {' and '.join(packages)}, of which something is not installed")
    if not hasattr(kind, "scale_model_input"):
        raise MixshowError(
            f"scheduler '{name}': expected one for models that predict noise or velocities, such as "
            "DPMSolverMultistepScheduler; this one is for models of another kind"
        )
    known = set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}
    for option in options:
        if option not in known:
            raise MixshowError(
                f"scheduler option '{option}': {full_name} has no such option{did_you_mean(option, known)}"
            )
    return kind


def as_noise(base: Base, output: Tensor, latents: Tensor, times: Tensor) -> Tensor:
    """The noise that an output of the UNet predicts.

    With the schedule's `a` and `s` (`x = a x0 + s e`) a velocity is `v = a e - s x0` (arXiv 2202.00512), so that
    `e = a v + s x`.

    Args:
        output: of the UNet, `[batch, channels, height, width]`.
        latents: what it read, of variance-preserving noise, in that shape.
        times: timesteps, one for all or `[batch]`.
    """
    if base.prediction_type == "epsilon":
        return output
    shares = make_scheduler(base, "DDPM").alphas_cumprod[torch.as_tensor(times).long().cpu()]
    shares = shares.to(output).reshape(-1, 1, 1, 1)
    return shares.sqrt() * output + (1 - shares).sqrt() * latents


def as_clean(base: Base, output: Tensor, latents: Tensor, times: Tensor) -> Tensor:
    """The latents without noise that an output of the UNet predicts; arguments as of `as_noise`."""
    shares = make_scheduler(base, "DDPM").alphas_cumprod[torch.as_tensor(times).long().cpu()]
    shares = shares.to(output).reshape(-1, 1, 1, 1)
    if base.prediction_type == "epsilon":
        return (latents - (1 - shares).sqrt() * output) / shares.sqrt()
    return shares.sqrt() * latents - (1 - shares).sqrt() * output
