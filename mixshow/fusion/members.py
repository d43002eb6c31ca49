"""A concept taking part in a fusion: with which strengths, with what weight, and in place on a base."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError, OptionsError
from mixshow.edlora.concept import Concept
from mixshow.edlora.embedding import attach_embeddings
from mixshow.fusion.layers import Layer, Stage, layers_of, put_in_place
from mixshow.fusion.statistics import is_elementwise
from mixshow.lycoris import Network, load_network
from mixshow.lycoris.algorithm import Algorithm
from mixshow.lycoris.carrier import own_weight
from mixshow.models import Base


class Changes(Mapping[str, Tensor]):
    """A member's weight changes by module path, each formed when it is asked for.

    In the weight's shape; where the bias changes too a matrix `[out, in + 1]` whose last column is the bias's; of a
    normalisation `[channels, 1]` or `[channels, 2]`.
    """

    def __init__(self, active: Mapping[str, tuple[Layer, Algorithm, float]]) -> None:
        self._active = dict(active)

    def __iter__(self) -> Iterator[str]:
        return iter(self._active)

    def __len__(self) -> int:
        return len(self._active)

    def __contains__(self, path: object) -> bool:
        return path in self._active  # without forming the change

    def __getitem__(self, path: str) -> Tensor:
        layer, adapter, strength = self._active[path]
        change, bias = adapter.change_at(own_weight(layer.module), strength), adapter.bias_delta()
        if bias is not None:
            bias = strength * bias.reshape(-1, 1)
            change = torch.cat([change.reshape(len(bias), -1), bias.to(change.dtype)], dim=1)
        elif is_elementwise(layer.module):
            change = change.reshape(-1, 1)
        return change

    def only(self, paths: Iterable[str]) -> Changes:
        """Those of some modules."""
        return Changes({path: self._active[path] for path in paths if path in self._active})

    def columns(self, path: str) -> int:
        """Of the change as a matrix, without forming it."""
        layer, adapter, _ = self._active[path]
        weight = own_weight(layer.module)
        own = 1 if is_elementwise(layer.module) else weight[0].numel()
        return own + (adapter.bias_delta() is not None)

    @torch.no_grad()
    def factors(self, path: str) -> tuple[Tensor, Tensor] | None:
        """`(up [out, r], down [r, in])` whose product is the change as a matrix; None where it has no low rank."""
        layer, adapter, strength = self._active[path]
        proportional = type(adapter).weight_at is Algorithm.weight_at
        if not proportional or adapter.bias_delta() is not None or is_elementwise(layer.module):
            return None
        factors = adapter.low_rank(own_weight(layer.module))
        return None if factors is None else (strength * factors[0], factors[1])


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A concept of a fusion.

    Attributes:
        weight: how much its errors count against the other concepts'.
        text_encoder: strength of its network on the text encoder.
        unet: strength of its network on the UNet.
        alpha: strength of its whole network, a factor on both.
    """

    concept: Concept
    weight: float = 1.0
    text_encoder: float = 1.0
    unet: float = 1.0
    alpha: float = 1.0
    _loaded: list[Network] = dataclasses.field(default_factory=list, init=False, repr=False)  # none, or the last base's

    def changes(self, base: Base, stages: Iterable[Stage] = tuple(Stage)) -> Changes:
        """Its weight changes at its strengths, by module path, in at least float32, formed when asked for.

        Raises:
            MixshowError: the network was made for another base.
        """
        return Changes(
            {layer.path: (layer, adapter, strength) for layer, adapter, strength in self._active(base, stages)}
        )

    def changes_anything(self, base: Base, stages: Iterable[Stage] = tuple(Stage)) -> bool:
        """Whether any of its weight changes is not 0; they are looked at until one is found.

        Raises:
            MixshowError: the network was made for another base.
        """
        return any(bool(change.any()) for change in self.changes(base, stages).values())

    def output_directions(self, base: Base) -> dict[str, Tensor | None]:
        """By module path, columns `[out, rank]` that span its changed outputs; None where its change has no low rank.

        Raises:
            MixshowError: the network was made for another base.
        """
        found: dict[str, Tensor | None] = {}
        with torch.no_grad():
            for layer, adapter, _ in self._active(base, tuple(Stage)):
                factors = adapter.low_rank(own_weight(layer.module))
                found[layer.path] = None if factors is None else factors[0]
        return found

    def changed_biases(self, base: Base, stages: Iterable[Stage] = tuple(Stage)) -> set[str]:
        """Paths of the modules whose bias it changes.

        Raises:
            MixshowError: the network was made for another base.
        """
        return {layer.path for layer, adapter, _ in self._active(base, stages) if adapter.bias_delta() is not None}

    def _active(self, base: Base, stages: Iterable[Stage]) -> Iterator[tuple[Layer, Algorithm, float]]:
        """The layers of some stages that it changes, by what, and at which strength."""
        stages, layers = set(stages), layers_of(base)
        for name, adapter in self._network(base).adapters.items():
            layer = layers[name]
            strength = self._strength(layer.stage)
            if layer.stage in stages and strength != 0:
                yield layer, adapter, strength

    def _network(self, base: Base) -> Network:
        """Its network on a base, read once: some algorithms decompose every weight for it."""
        if not self._loaded or self._loaded[0].models != base.models:
            try:
                self._loaded[:] = [load_network(base.models, self.concept.network).requires_grad_(False)]
            except OptionsError as error:
                name, others = self.concept.source or self.concept.text, len(error.problems) - 1
                more = f"; {others} other modules or more do not fit either" if others else ""
                raise MixshowError(f"{name}: does not fit base '{base.source}': {error.problems[0]}{more}") from error
            except MixshowError as error:
                raise MixshowError(f"{self.concept.source or self.concept.text}: {error}") from error
        return self._loaded[0]

    def _strength(self, stage: Stage) -> float:
        return self.alpha * (self.text_encoder if stage is Stage.TEXT else self.unet)

    @contextlib.contextmanager
    def in_place(self, base: Base, stages: Iterable[Stage] = tuple(Stage)) -> Iterator[Base]:
        """The base tuned to this concept within the block: its tokens, and its network on the layers of some stages.

        With no stages it is the base that knows the tokens only.
        """
        modules = {layer.path: layer.module for layer in layers_of(base).values()}
        stages = tuple(stages)
        tuned, embedding = attach_embeddings(base, self.concept.embeddings)
        with embedding, put_in_place(modules, self.changes(base, stages) if stages else {}):
            yield tuned


def changed_layers(base: Base, members: Sequence[Member], stage: Stage) -> list[Layer]:
    """The layers of a stage that any member's network changes at its strength, extended where one changes the bias."""
    changed = {path for member in members for path in member.changes(base, [stage])}
    biased = {path for member in members for path in member.changed_biases(base, [stage])}
    return [
        dataclasses.replace(layer, extended=layer.path in biased)
        for layer in layers_of(base).values()
        if layer.path in changed
    ]


def all_embeddings(members: Sequence[Member]) -> dict[str, Tensor]:
    """The tokens of all members, in order."""
    return {token: vectors for member in members for token, vectors in member.concept.embeddings.items()}


def renamed(concept: Concept, tokens: Sequence[str]) -> Concept:
    """The concept under other tokens; its own tokens in another order are only put into that order.

    Raises:
        MixshowError: not as many as the concept has.
    """
    if len(tokens) != len(concept.embeddings) or len(set(tokens)) != len(tokens):
        raise MixshowError(
            f"{concept.source or concept.text}: expected {len(concept.embeddings)} different tokens in place of "
            f"'{concept.text}', found '{' '.join(tokens)}'"
        )
    if set(tokens) == set(concept.embeddings):
        return dataclasses.replace(concept, embeddings={token: concept.embeddings[token] for token in tokens})
    return dataclasses.replace(concept, embeddings=dict(zip(tokens, concept.embeddings.values())))
