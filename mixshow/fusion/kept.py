"""Inputs that some problems need as they are, beside the moments: rows that constraints are on, and samples.

They are recorded in a pass of their own, so that moments may come from anywhere; where nobody wants any there is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixshow.fusion.collect import Collection, key_value_rows, record, unpadded_states
from mixshow.fusion.constraints import constrained_problems
from mixshow.fusion.layers import Layer, Stage, layers_of
from mixshow.fusion.problem import LayerProblem
from mixshow.fusion.rows import Rows, RowSample, RowSampler
from mixshow.fusion.samples import sampled_problems
from mixshow.models import Base


@dataclasses.dataclass(frozen=True, eq=False)
class KeptInputs:
    """Of one stage.

    Attributes:
        constraints: rows of keys and values that constraints are on, one per member; empty without constraints.
        samples: of each layer's inputs, one per member; empty where none are wanted.
    """

    constraints: Sequence[Rows] = ()
    samples: Sequence[Rows] = ()

    def applied(self, base: Base, problems: Sequence[LayerProblem]) -> list[LayerProblem]:
        """The problems of these layers with what was kept of their inputs."""
        if self.constraints:
            return constrained_problems(problems, self.constraints)
        if self.samples:
            modules = {layer.path: layer.module for layer in layers_of(base).values()}
            return sampled_problems(problems, self.samples, modules)
        return list(problems)


def sample_rows(
    base: Base,
    layers: Sequence[Layer],
    stage: Stage,
    collection: Collection,
    *,
    text_prompts: Sequence[str],
    picture_prompts: Sequence[str],
    words: str = "",
) -> Rows:
    """Some of the inputs that `record` sums up, by path; arguments as there."""
    if stage is Stage.KEY_VALUE:
        return _key_value_samples(base, layers, text_prompts, collection, words)
    modules = {layer.path: layer.module for layer in layers}
    extended = [layer.path for layer in layers if layer.extended]
    with RowSampler(modules, collection.rows, extended=extended, seed=collection.seed) as sampler:
        # With no layers to sum up, all that is left of recording is running the model.
        record(base, [], stage, collection, text_prompts=text_prompts, picture_prompts=picture_prompts)
    return sampler.rows()


@torch.no_grad()
def _key_value_samples(
    base: Base, layers: Sequence[Layer], prompts: Sequence[str], collection: Collection, words: str
) -> Rows:
    samples: dict[tuple[int | None, bool], RowSample] = {}
    for key, rows in key_value_rows(base, layers, prompts, collection.every_position, words):
        sample = samples.setdefault(key, RowSample(collection.rows, collection.seed))
        sample.add(_with_constant(rows, key[1]))
    return {layer.path: samples[layer.text_layer, layer.extended].rows for layer in layers}


@torch.no_grad()
def token_rows(base: Base, layers: Sequence[Layer], prompts: Sequence[str], tokens: Iterable[str]) -> Rows:
    """What keys and values read at some concept tokens, `[rows, in]` by path; without tokens, at every word."""
    wanted = torch.tensor([number for token in tokens for number in base.vocabulary.ids[token]])
    around = torch.tensor([base.tokenizer.bos_token_id, base.tokenizer.eos_token_id])
    found: dict[tuple[int | None, bool], list[Tensor]] = {}
    read = {(layer.text_layer, layer.extended) for layer in layers}
    for prompt in prompts:
        states, ids = unpadded_states(base, prompt)
        for key in read:
            number, extended = key
            own = ids[number].cpu()
            chosen = torch.isin(own, wanted) if len(wanted) else ~torch.isin(own, around)
            rows = states[number][chosen.to(states.device)]
            found.setdefault(key, []).append(_with_constant(rows, extended))
    joined = {key: torch.cat(parts) for key, parts in found.items()}
    return {layer.path: joined[layer.text_layer, layer.extended] for layer in layers}


def _with_constant(rows: Tensor, extended: bool) -> Tensor:
    return F.pad(rows, (0, 1), value=1.0) if extended else rows
