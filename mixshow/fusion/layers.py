"""Which layers fusion changes, in which of three stages, and weight changes put in place for a while."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from enum import Enum
from functools import partial

from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.lycoris.naming import canonical_path, file_name
from mixshow.lycoris.operation import module_operation
from mixshow.models import Base


class Stage(Enum):
    """Layers by what they read: tokens, text states, or what flows through the UNet."""

    TEXT = "text encoder"
    KEY_VALUE = "keys and values"
    SPATIAL = "spatial layers"


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module that can be fused.

    Attributes:
        path: canonical path, the key of statistics, problems and reports.
        file_name: its name in network files.
        text_layer: for keys and values, the number of their cross-attention layer.
        extended: its bias changes too, so that its statistics need a constant input.
    """

    path: str
    file_name: str
    stage: Stage
    module: nn.Module
    text_layer: int | None = None
    extended: bool = False


def layers_of(base: Base) -> dict[str, Layer]:
    """All modules with a weight of the base's text encoders and UNet, by file name."""
    numbers = {
        f"{path}.{part}": number
        for number, path in enumerate(base.topology.cross_attention)
        for part in ("to_k", "to_v")
    }
    found = {}
    for model, root in base.models.items():
        for path, module in root.named_modules():
            if not path or not isinstance(getattr(module, "weight", None), nn.Parameter):
                continue
            number = numbers.get(path) if model == "unet" else None
            stage = Stage.TEXT if model != "unet" else Stage.SPATIAL if number is None else Stage.KEY_VALUE
            own_path = canonical_path(model, path)
            if model == "text_encoder_2":  # both text encoders have modules of the same paths
                own_path = f"{model}.{own_path}"
            layer = Layer(own_path, file_name(model, path, base.models), stage, module, number)
            found[layer.file_name] = layer
    return found


def put_in_place(modules: Mapping[str, nn.Module], changes: Mapping[str, Tensor]) -> Attachment:
    """Add changes to the weights and biases of modules; detaching puts the very same tensors back.

    Args:
        modules: by path.
        changes: by path, with as many elements as the weight; or `[out, in + 1]`, the last column for the bias.
    """
    attachment = Attachment()
    try:
        for path, change in changes.items():
            weight, bias = modules[path].weight, getattr(modules[path], "bias", None)
            assert isinstance(weight, nn.Parameter)
            if change.numel() == weight.numel():
                _add(weight, change, attachment)
                continue
            assert isinstance(bias, nn.Parameter) and change.numel() == weight.numel() + bias.numel()
            _add(weight, change[:, :-1], attachment)
            _add(bias, change[:, -1], attachment)
    except BaseException:
        attachment.detach()
        raise
    return attachment


def put_biases_in_place(modules: Mapping[str, nn.Module], changes: Mapping[str, Tensor]) -> Attachment:
    """Add changes to the biases alone; as `put_in_place`, with `[out]` by path."""
    attachment = Attachment()
    try:
        for path, change in changes.items():
            bias = modules[path].bias
            assert isinstance(bias, nn.Parameter)
            _add(bias, change, attachment)
    except BaseException:
        attachment.detach()
        raise
    return attachment


def changed_output(module: nn.Module, x: Tensor, change: Tensor) -> Tensor:
    """What a change adds to a module's output.

    Args:
        x: the module's input.
        change: in one of the shapes that `put_in_place` takes.
    """
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    rows = change.to(x).reshape(len(weight), -1)
    columns = weight[0].numel()
    bias = rows[:, -1] if rows.shape[1] > columns else None
    return module_operation(module, x, rows[:, :columns].reshape(weight.shape), bias)


def _add(parameter: nn.Parameter, change: Tensor, attachment: Attachment) -> None:
    before = parameter.data
    attachment.add(partial(setattr, parameter, "data", before))
    # Added in the change's precision, rounded once.
    parameter.data = (before.to(change.dtype) + change.reshape(before.shape).to(before.device)).to(before.dtype)
