"""What a module does with its weight, done with another weight; and a way to do it that keeps no built weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixshow.core.errors import MixshowError

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
ADAPTABLE = (nn.Linear, *_CONVOLUTIONS, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def module_operation(module: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """What the module does with its weight, done with another weight and bias.

    Args:
        x: the module's input.
        weight: in the shape of the module's; a convolution's may have other numbers of channels. None, where the
            module allows it: none.
        bias: None: none.

    Raises:
        MixshowError: a module of a kind that cannot carry a network.
    """
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)
    if isinstance(module, nn.RMSNorm) and bias is None:
        return F.rms_norm(x, module.normalized_shape, weight, module.eps)
    if weight is not None and isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    if weight is not None:
        for kind, operation in _CONVOLUTIONS.items():
            if isinstance(module, kind):
                x, padding = padded(module, x)
                return operation(x, weight, bias, module.stride, padding, module.dilation, module.groups)
    raise MixshowError(
        f"modules of kind {type(module).__name__} cannot carry this network; Linear, Conv1d, Conv2d and Conv3d can, "
        "and LayerNorm, GroupNorm and RMSNorm for the algorithm 'norm'"
    )


def padded(module: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    """A convolution's input with padding that the operation itself cannot do put on, and the padding left to do."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, module.padding
    mode = "constant" if module.padding_mode == "zeros" else str(module.padding_mode)
    return F.pad(x, module._reversed_padding_repeated_twice, mode=mode), 0  # type: ignore[arg-type]


def output_positions(module: nn.Module, x: Tensor) -> int:
    """How often the weight is applied to an input: rows of a linear layer, places of a convolution's output."""
    if isinstance(module, nn.Linear):
        return x.numel() // x.shape[-1]
    if isinstance(module, tuple(_CONVOLUTIONS)):
        strides: Any = module.stride
        axes = len(strides)
        # A list: torch.compile does not follow a generator into math.prod.
        return math.prod(x.shape[:-axes][:-1]) * math.prod([-(-s // t) for s, t in zip(x.shape[-axes:], strides)])
    return 1


def rebuilt_operation(
    module: nn.Module, x: Tensor, bias: Tensor | None, build: Callable[[], Tensor], parameters: Sequence[Tensor]
) -> Tensor:
    """The module's operation with a weight that is built for it and built again for the backward pass.

    Nothing of the weight's size is kept between the two: only the input and the parameters it is built from.

    Args:
        x: the module's input, in the precision to compute in.
        build: makes the weight from the parameters, the same one each time; autocast is off while it runs.
        parameters: everything with a gradient that `build` reads.
    """

    def built() -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return build().to(x.dtype)

    bias = None if bias is None else bias.to(x.dtype)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    keeps = torch.is_grad_enabled() and isinstance(module, (nn.Linear, *_CONVOLUTIONS)) and bool(trained)
    # A compiler saves or recomputes by its own reckoning, and needs to see the operations.
    if not keeps or torch.compiler.is_compiling():
        return module_operation(module, x, built(), bias)
    geometry = None
    if not isinstance(module, nn.Linear):
        x, padding = padded(module, x)
        strides: Any = module.stride
        geometry = (strides, _each_axis(padding, len(strides)), module.dilation, module.groups)
    return _Rebuilt.apply(x, bias, built, geometry, *trained)


def _each_axis(padding: Any, axes: int) -> tuple[int, ...]:
    return (padding,) * axes if isinstance(padding, int) else tuple(padding)


class _Rebuilt(torch.autograd.Function):
    """A linear layer (`geometry` None) or convolution whose weight is built anew in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, built: Callable[[], Tensor], geometry: Any, *parameters: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, *parameters)
        ctx.built, ctx.geometry, ctx.has_bias = built, geometry, bias is not None
        weight = built()
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, weight, bias) if geometry is None else _convolve(x, weight, bias, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors
        with torch.enable_grad():
            weight = ctx.built()
        to_x, to_bias = ctx.needs_input_grad[0], ctx.has_bias and ctx.needs_input_grad[1]
        with torch.autocast(x.device.type, enabled=False):
            if ctx.geometry is None:
                rows = gradient.flatten(0, -2)
                in_x = gradient @ weight.detach() if to_x else None
                in_weight, in_bias = rows.T @ x.flatten(0, -2), rows.sum(0) if to_bias else None
            else:
                stride, padding, dilation, groups = ctx.geometry
                in_x, in_weight, in_bias = torch.ops.aten.convolution_backward(
                    gradient, x, weight.detach(), [weight.shape[0]] if to_bias else None, stride, padding, dilation,
                    False, [0] * len(stride), groups, [to_x, True, to_bias],
                )  # fmt: skip
            in_parameters = torch.autograd.grad(weight, parameters, in_weight, allow_unused=True)
        return in_x, in_bias, None, None, *in_parameters


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
    stride, padding, dilation, groups = geometry
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)
