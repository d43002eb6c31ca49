"""Which layers statistics are recorded of: those that a concept changes, and kinds of layers that others may change.

A concept's statistics count in every layer that any concept of a fusion changes. A file made for one concept alone
therefore covers more than its own layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.fusion.layers import Layer, Stage, layers_of
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.statistics import is_elementwise
from mixshow.fusion.statistics_file import StatisticsFile, StoredInputs
from mixshow.models import Base

OWN, ALL = "own", "all"
# Kinds of layers, in the order in which a layer is asked whether it is one.
KINDS: Mapping[str, str] = {
    "text_attention": "the text encoders' attention",
    "text_feed_forward": "the text encoders' other linear layers",
    "keys_values": "keys and values of cross-attention",
    "attention": "the UNet's other attention projections",
    "feed_forward": "what else its transformers have",
    "convolutions": "its convolutions outside transformers",
    "time": "its other linear layers, which read time",
    "normalisations": "normalisations everywhere",
}
DEFAULT = (OWN, "text_attention", "keys_values", "attention")


def kinds_of(base: Base) -> dict[str, str]:
    """The kind of every layer that can be fused, by module path."""
    inside = {
        name: {
            id(module)
            for root in base.models.values()
            for container in root.modules()
            if any(kind.__name__ == name for kind in type(container).__mro__)
            for module in container.modules()
        }
        for name in ("CLIPAttention", "Attention", "Transformer2DModel")
    }
    found = {layer.path: _kind(layer, inside) for layer in layers_of(base).values()}
    return {path: kind for path, kind in found.items() if kind is not None}


def _kind(layer: Layer, inside: Mapping[str, Collection[int]]) -> str | None:
    module, own = layer.module, id(layer.module)
    if is_elementwise(module):
        return "normalisations"
    if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.padding_mode != "zeros"):
        return None
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        return None
    if layer.stage is Stage.TEXT:
        return "text_attention" if own in inside["CLIPAttention"] else "text_feed_forward"
    if layer.stage is Stage.KEY_VALUE:
        return "keys_values"
    if own in inside["Attention"]:
        return "attention"
    if own in inside["Transformer2DModel"]:
        return "feed_forward"
    return "convolutions" if isinstance(module, nn.Conv2d) else "time"


def covered_layers(base: Base, member: Member | None, kinds: Collection[str], *, biases: bool = False) -> list[Layer]:
    """The layers of some kinds, in the model's order.

    Args:
        member: whose layers `own` means; None: nobody's.
        kinds: of `KINDS`, `own`, or `all`.
        biases: extend the inputs of every layer that has a bias, not only where the member changes it.
    """
    own = {layer.path: layer for stage in Stage for layer in changed_layers(base, [member] if member else [], stage)}
    kind = kinds_of(base)
    found = []
    for layer in layers_of(base).values():
        wanted = kind.get(layer.path) in kinds or (ALL in kinds and layer.path in kind)
        if not wanted and not (OWN in kinds and layer.path in own):
            continue
        changed = own.get(layer.path, layer).extended
        has_bias = isinstance(getattr(layer.module, "bias", None), nn.Parameter)
        found.append(dataclasses.replace(layer, extended=changed or (biases and has_bias)))
    return found


def fused_layers(base: Base, members: Sequence[Member]) -> list[Layer]:
    """The layers that any member changes, extended where one of them changes the bias."""
    return [layer for stage in Stage for layer in changed_layers(base, members, stage)]


def inputs_for(base: Base, file: StatisticsFile, layers: Sequence[Layer]) -> dict[str, StoredInputs]:
    """A file's inputs of some layers, by path, still in the file; a constant 1 that is not wanted is left out.

    Raises:
        MixshowError: layers are missing, or their constant 1; says which, and with which options to record again.
    """
    missing = [layer.path for layer in layers if layer.path not in file.layers]
    if missing:
        kind = kinds_of(base)
        kinds = sorted({kind.get(path, ALL) for path in missing}, key=[*KINDS, ALL].index)
        raise MixshowError(
            f"{file.path}: lacks {len(missing)} of the {len(layers)} layers that the concepts change, such as "
            f"'{missing[0]}'; record it again with layers=[{','.join([OWN, *kinds])}] and the layers it has"
        )
    short = [layer.path for layer in layers if layer.extended and layer.path not in file.extended]
    if short:
        raise MixshowError(
            f"{file.path}: was recorded without the constant input of {len(short)} biases that the concepts change, "
            f"such as that of '{short[0]}'; record it again with biases=true"
        )
    found: dict[tuple[str, bool], StoredInputs] = {}
    for layer in layers:
        own = file.layers[layer.path]
        cut = layer.path in file.extended and not layer.extended
        found.setdefault((own.key, cut), dataclasses.replace(own, without_constant=cut))
    return {
        layer.path: found[file.layers[layer.path].key, layer.path in file.extended and not layer.extended]
        for layer in layers
    }
