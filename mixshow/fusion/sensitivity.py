"""Second moments in which an input counts by how much the prediction depends on what its layer makes of it.

To first order a change E of a layer changes the predicted noise by `J E x` for each of its inputs x, with J the
derivative of the prediction with respect to that output. The plain objective takes all J as equal. Here an input
counts by `w(x) = tr(J^T J)`, which gradients of `<v, prediction>` estimate without bias for random signs v:
E |J^T v|^2 = tr(J^T J) (Hutchinson 1990). All outputs of a layer are taken as alike, so that a moment of the input's
width is all that is kept, as before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.fusion.statistics import (
    SINGLE_RESOLUTION,
    LayerStatistics,
    input_parts,
    input_width,
    is_elementwise,
    second_moment,
)
from mixshow.fusion.wide import KeptRows, RowSampling


@dataclasses.dataclass(eq=False)
class _Read:
    """What a layer read in a pass.

    Attributes:
        weights: of its rows; None until its gradient comes.
    """

    name: str
    x: Tensor
    weights: Tensor | None = None


class SensitivityRecorder:
    """Records weighted moments of chosen modules' inputs in passes forwards and backwards; hooks come off again.

    Every layer has weights of its own, so layers that read the same have moments of their own: what is recorded of one
    does not depend on which others are.

    Args:
        modules: by canonical path.
        extended: paths of modules whose inputs are extended by a constant 1.
        sampling: of the rows of wide inputs, whose moments would be larger.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], *, extended: Collection[str] = (), sampling: RowSampling
    ) -> None:
        self._modules, self._extended = dict(modules), frozenset(extended)
        widths = {name: input_width(module) + (name in self._extended) for name, module in modules.items()}
        self._samplers = sampling.samplers(widths)
        self._moments: dict[str, LayerStatistics] = {}
        self._reads: list[_Read] = []
        self._leaves: list[Tensor] = []
        self._attachment = Attachment()
        self._on = False

    def __enter__(self) -> Self:
        for name, module in self._modules.items():
            self._attachment.add_hook(module.register_forward_hook(partial(self._read, name)))
            for parameter in module.parameters(recurse=False):  # outputs that only they ask gradients of are leaves
                self._attachment.add(partial(parameter.requires_grad_, parameter.requires_grad))
                parameter.requires_grad_(False)
        return self

    def __exit__(self, *_: object) -> None:
        self._attachment.detach()
        self._reads, self._leaves = [], []

    def passed(self, unet: nn.Module, latents: Tensor, direction: Tensor, *arguments: object, **more: object) -> None:
        """One pass forwards and backwards.

        Args:
            direction: v, random of unit variance, in the shape of the prediction.
            arguments: further ones of the UNet.
        """
        self._on = True
        try:
            with torch.enable_grad():
                start = latents.detach().clone().requires_grad_(True)
                prediction = unet(start, *arguments, **more).sample
                # Gradients of parameters are not wanted, whether they require some or not.
                torch.autograd.backward((prediction.float() * direction).sum(), inputs=[start, *self._leaves])
            for read in self._reads:
                self._sum_up(read)
        finally:
            self._on, self._reads, self._leaves = False, [], []

    def _read(self, name: str, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if not self._on:
            return
        read = _Read(name, arguments[0].detach())
        self._reads.append(read)
        if not output.requires_grad:  # it does not depend on the picture: the time's embedding
            output.requires_grad_(True)
            self._leaves.append(output)
        output.register_hook(partial(_weigh, read, module))

    @torch.no_grad()
    def _sum_up(self, read: _Read) -> None:
        if read.weights is None:  # nothing depends on it
            return
        name, root = read.name, read.weights.sqrt()
        module, extended = self._modules[name], name in self._extended
        moment, count = None, 0
        for rows in input_parts(module, read.x.float()):
            own = root[count : count + len(rows)]
            count += len(rows)
            if name in self._samplers:
                whole = F.pad(rows, (0, 1), value=1.0) if extended else rows
                self._samplers[name].put(whole * own[:, None])
                continue
            product = second_moment(rows, elementwise=is_elementwise(module), extended=extended, roots=own)
            moment = product.double() if moment is None else moment.add_(product)
        if moment is None:
            return
        latest, before = LayerStatistics(moment, count, SINGLE_RESOLUTION), self._moments.get(name)
        self._moments[name] = latest if before is None else before + latest

    def statistics(self) -> dict[str, LayerStatistics | KeptRows]:
        """What was recorded, by module path."""
        rows = {name: each.statistics(SINGLE_RESOLUTION) for name, each in self._samplers.items() if each.rows}
        return {**self._moments, **rows}


def backward_bytes(unet: nn.Module, latents: Tensor, *arguments: object, **more: object) -> int:
    """Memory that a pass keeps for its gradients, weights not counted: of every storage once, by running it.

    Args:
        latents: of the picture; `arguments` and `more` are the UNet's further ones.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no storage takes another's place

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    start = latents.detach().clone().requires_grad_(True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(start, *arguments, **more)
    return sum(sizes.values())


def _weigh(read: _Read, module: nn.Module, gradient: Tensor) -> None:
    """Squared norms of a gradient's rows, in the order of `input_rows`."""
    squares = gradient.detach().float().square()
    if isinstance(module, (nn.Conv2d, nn.GroupNorm)):
        own = squares.sum(1).flatten()
    else:
        own = squares.sum(-1).flatten()
    read.weights = own if read.weights is None else read.weights + own
