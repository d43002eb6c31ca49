"""Pictures that guide the layout through ControlNets (arXiv 2302.05543), of one kind of picture or of several (union).

A ControlNet reads the scene's own prompt everywhere: regions act in the UNet. Its cross-attention layers are copies of
the UNet's first ones, in the same order, so layer l of either reads the same slice of layer-wise states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel
from PIL import Image
from torch import Tensor

from mixshow.core.errors import MixshowError, explained
from mixshow.edlora.layerwise import layerwise_states
from mixshow.models import Base
from mixshow.models.base import source_problem
from mixshow.sampling.conditions import picture_tensor
from mixshow.sampling.guide import UNetInput, Weight, weighed

_SAME = ("in_channels", "cross_attention_dim", "block_out_channels", "addition_embed_type")  # as the UNet has them


@dataclasses.dataclass(frozen=True, eq=False)
class ControlCondition:
    """A ControlNet with the pictures it reads at every step.

    Attributes:
        pictures: `[pictures, channels, height, width]` in 0..1; one serves a whole batch.
        weight: factor on what it adds, or one for each position; 0 is the same as no condition.
        span: part of the steps in which it acts, from 0.0 (first) to 1.0 (last).
        control_type: of a union network, which kind of picture this is, by its number; else None.
    """

    net: ControlNetModel | ControlNetUnionModel
    pictures: Tensor
    weight: Weight = 1.0
    span: tuple[float, float] = (0.0, 1.0)
    control_type: int | None = None

    def for_unet(self, given: UNetInput) -> dict[str, Any]:
        """See `Guide`. Networks whose residuals are means over the picture act on the prompted half only."""
        if self.weight == 0 or not given.within(self.span):
            return {}
        latents, text = given.latents, given.text
        prompted_only = given.guided and self.net.config.global_pool_conditions
        if prompted_only:
            latents, text = latents[len(latents) // 2 :], text[len(text) // 2 :]
        pictures = self.pictures.repeat(len(latents) // len(self.pictures), 1, 1, 1)
        with layerwise_states(self.net):
            down, middle = self.net(
                latents, given.timestep, **text.for_unet(latents), **self._pictures(pictures), return_dict=False
            )
        down, middle = [weighed(residual, self.weight) for residual in down], weighed(middle, self.weight)
        if prompted_only:
            down, middle = [_behind_zeros(residual) for residual in down], _behind_zeros(middle)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def _pictures(self, pictures: Tensor) -> dict[str, Any]:
        """The network's keywords for its pictures."""
        if self.control_type is None:
            return {"controlnet_cond": pictures}
        kinds = torch.zeros(len(pictures), self.net.config.num_control_type).to(pictures)
        kinds[:, self.control_type] = 1
        return {"controlnet_cond": [pictures], "control_type": kinds, "control_type_idx": [self.control_type]}


def control_condition(
    net: ControlNetModel | ControlNetUnionModel,
    pictures: Sequence[Image.Image],
    *,
    weight: Weight = 1.0,
    span: tuple[float, float] = (0.0, 1.0),
    control_type: int | None = None,
) -> ControlCondition:
    """Let a ControlNet read condition pictures.

    Args:
        pictures: of the size that is to be made; one for a whole batch, or one per picture of it.
        weight: factor on what it adds, or one for each position.
        span: part of the steps in which it acts, from 0.0 to 1.0.
        control_type: see `ControlCondition`.
    """
    values = picture_tensor(pictures, net.config.conditioning_channels).to(net.device, net.dtype)
    return ControlCondition(net, values, weight, span, control_type)


def load_controlnet(
    source: str | Path, base: Base, control_type: int | None = None
) -> ControlNetModel | ControlNetUnionModel:
    """Load a ControlNet to the base's device and type.

    Args:
        source: a folder or a hub id.
        control_type: as for `check_controlnet`.

    Raises:
        MixshowError: there is no such ControlNet, or it does not fit the base.
    """
    union = check_controlnet(source, base.unet.config, base.source, control_type)
    with explained(_expectation(source)):
        kind = ControlNetUnionModel if union else ControlNetModel
        net = kind.from_pretrained(str(Path(source).expanduser()), torch_dtype=base.unet.dtype)
    return net.to(base.device).eval().requires_grad_(False)


def check_controlnet(source: str | Path, unet: Mapping[str, Any], model: str, control_type: int | None = None) -> bool:
    """Look at a ControlNet's configuration, which of a hub id is fetched.

    Args:
        unet: configuration of the UNet it is for.
        model: the base's name, for messages.
        control_type: number of the kind of picture; for union networks, which need one.

    Returns:
        Whether it is a union network.

    Raises:
        MixshowError: there is no such ControlNet, it was trained on another kind of base, or the control type is wrong.
    """
    problem = controlnet_problem(source)
    if problem:
        raise MixshowError(f"controlnet: {problem}")
    with explained(_expectation(source)):
        config = ControlNetModel.load_config(str(Path(source).expanduser()))
    if "Control" not in config.get("_class_name", ""):
        raise MixshowError(f"controlnet '{source}': expected a ControlNet, found {config.get('_class_name')}")
    for name in _SAME:
        found, expected = _plain(config.get(name)), _plain(unet.get(name))
        if found != expected:
            raise MixshowError(
                f"controlnet '{source}': expected one with {name} {expected} for base '{model}', found {found}; it was "
                "trained on another kind of base"
            )
    kinds = config.get("num_control_type")
    if kinds is None and control_type is not None:
        raise MixshowError(f"controlnet '{source}': expected no control_type, it reads one kind of picture only")
    if kinds is not None and (control_type is None or not 0 <= control_type < kinds):
        found = "none" if control_type is None else control_type
        raise MixshowError(
            f"controlnet '{source}': expected a control_type from 0 to {kinds - 1}, as its model card numbers them; "
            f"found {found}"
        )
    return kinds is not None


def controlnet_problem(source: str | Path) -> str | None:
    """Why `source` can name no ControlNet; None when it can. Loads nothing."""
    path = Path(source).expanduser()
    if path.is_file():
        return f"expected a diffusers folder or a hub id of a ControlNet, found the file '{source}'"
    return source_problem(source)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _behind_zeros(residual: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(residual), residual])


def _expectation(source: str | Path) -> str:
    return f"controlnet '{source}': expected a folder or a hub id of a ControlNet"
