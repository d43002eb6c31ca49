"""Layers solved one after another: against plain passes and dense least squares, and what a fusion with them is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar, cast

import pytest
import torch
from torch import Tensor, nn

from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError
from mixshow.core.processes import Processes
from mixshow.core.seeding import derived_seed
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion import cost
from mixshow.fusion.collect import Collection
from mixshow.fusion.factors import as_low_rank, directions_of
from mixshow.fusion.fuse import fuse
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.heldout import HeldOut, HeldOutPlan
from mixshow.fusion.layers import Layer, Stage, layers_of, put_in_place
from mixshow.fusion.members import Member, changed_layers
from mixshow.fusion.objective import Objective
from mixshow.fusion.own_and_fused import chosen_points
from mixshow.fusion.paired import output_rows
from mixshow.fusion.prompts import filled
from mixshow.fusion.solved_layers import SolvedLayers
from mixshow.fusion.solvers import CG, LBFGS, Exact
from mixshow.fusion.statistics import input_rows, is_elementwise
from mixshow.fusion.walks import walk
from mixshow.models import Base, prompt_states
from mixshow.models.topology import residual_streams
from tests.fusion.test_fuse import EXACT, hooks, state
from tests.fusion.test_processes import Counter
from tests.fusion.test_recipe import stage  # noqa: F401
from tests.tiny import tiny_concept

T = TypeVar("T")
SMALL = Collection(
    sequential=True, text_prompts=["a photo of {concept}", "{concept} in the rain"],
    picture_prompts=["{concept}", "a {concept} on the beach"], steps=4, points=8,
)  # fmt: skip
MORE = dataclasses.replace(
    SMALL,
    picture_prompts=["{concept}", "a {concept} on the beach", "a {concept} in the rain", "photo of {concept}"],
    points=16,
)
OBJECTIVE = Objective(1e-2, 0.3, ["", "a photo of a dog"])


@pytest.fixture(scope="module")
def members(tiny: Base) -> list[Member]:
    return [Member(tiny_concept(tiny, name, seed=i)) for i, name in enumerate(("duck", "fox"))]


@pytest.fixture(scope="module")
def fusion(tiny: Base, members: list[Member]) -> Fusion:
    return fuse(tiny, members, SMALL, OBJECTIVE, EXACT)


def test_the_base_stays_as_it_was_and_every_layer_is_fused(tiny: Base, members: list[Member]) -> None:
    before, hooks_before = state(tiny), hooks(tiny)
    fusion = fuse(tiny, members, SMALL, OBJECTIVE, EXACT)
    after = state(tiny)
    assert all(torch.equal(after[key], before[key]) for key in before) and hooks(tiny) == hooks_before
    layers = {layer.path: layer for each in Stage for layer in changed_layers(tiny, members, each)}
    assert fusion.changes.keys() == fusion.outcomes.keys() == layers.keys()
    assert all(outcome.in_order == (layers[path].stage is Stage.SPATIAL) for path, outcome in fusion.outcomes.items())


class Reference:
    """Layers solved from rows of plain passes: a concept's own model, then the fused one as far as it is solved."""

    def __init__(self, base: Base, members: list[Member], fused: Fusion) -> None:
        self.base, self.members, self.fused = base, members, fused
        self.modules = {layer.path: layer.module for layer in layers_of(base).values()}
        self.streams = residual_streams(base.unet)

    def observed(
        self, model: Base, prompts: list[str], layer: Layer, points: list[tuple[int, Tensor, Tensor]]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each point the layer's input, output and residual stream."""
        states, found, stream = prompt_states(model, prompts), [], []
        with Attachment() as attachment, layerwise_states(model.unet), torch.no_grad():
            attachment.add_hook(layer.module.register_forward_hook(lambda _, x, y: found.append((x[0], y))))
            if layer.path in self.streams:
                reading = model.unet.get_submodule(self.streams[layer.path])
                attachment.add_hook(reading.register_forward_pre_hook(lambda _, x: stream.append(x[0])))
            for place, latents, time in points:
                model.unet(latents[None], time, **states[[place]].for_unet(latents[None]))
        streams = stream or [torch.zeros(())] * len(found)
        return [(x, y, z) for (x, y), z in zip(found, streams)]

    def solved(self, layer: Layer, changes: dict[str, Tensor], collection: Collection, objective: Objective) -> Tensor:
        """The layer's change, by dense least squares in float64."""
        inputs, targets = [], []
        for number in range(3):
            member = self.members[number] if number < 2 else None
            prompts = list(objective.captions)
            if member is not None:
                prompts = filled(collection.picture_prompts, member.concept.text)
            seeds = [derived_seed(collection.seed, "sequential", place) for place in range(len(prompts))]
            fused = dataclasses.replace(self.fused, changes={**self.fused.changes, **changes})
            own_model = member.in_place(self.base) if member else Fusion({}, {}).in_place(self.base)
            with own_model as own:
                walked = walk(own, prompts, seeds, collection.steps, None, None)
                share = collection.points // (2 if member else 4)
                points = [
                    (place, walked.points[step][0][place], walked.points[step][1])
                    for place, steps in chosen_points(number, len(prompts), collection.steps, share).items()
                    for step in steps
                ]
                wanted = self.observed(own, prompts, layer, points)
            with fused.in_place(self.base) as model:
                there = self.observed(model, prompts, layer, points)
            rows = torch.cat([input_rows(layer.module, x).double() for x, _, _ in there])
            lacking = []
            for (_, y, own_stream), (_, z, stream) in zip(wanted, there):
                missing = y - z
                if own_stream.dim():
                    added = own_stream - stream
                    missing = missing + (added if added.dim() == missing.dim() else added.flatten(2).mT)
                lacking.append(output_rows(layer.module, missing).double())
            weight = 0.5 if member else objective.anchor_weight
            scale = (weight / len(rows)) ** 0.5
            inputs.append(scale * rows)
            targets.append(scale * torch.cat(lacking))
        x, y = torch.cat(inputs), torch.cat(targets)
        moment = x.T @ x
        ridge = objective.ridge * moment.diagonal().mean()
        change = (y.T @ x) @ torch.linalg.inv(moment + ridge * torch.eye(len(moment), dtype=torch.float64))
        directions = directions_of(self.base, self.members)[layer.path]
        assert directions is not None
        if directions.shape[1] >= len(change):
            return change
        basis = torch.linalg.qr(directions.double()).Q
        return basis @ (basis.mT @ change)


def test_layers_are_solved_as_from_plain_passes_one_after_another(
    tiny: Base, members: list[Member], fusion: Fusion
) -> None:
    """For some layers: all before them as they were solved, this one and those behind it still the base's."""
    layers = {layer.path: layer for layer in changed_layers(tiny, members, Stage.SPATIAL)}
    order = [path for path in fusion.changes if path in layers]
    apart = {path: change for path, change in fusion.changes.items() if path not in layers}
    reference = Reference(tiny, members, dataclasses.replace(fusion, changes=apart))
    for place in (0, 3, 4, 7, 15, len(order) // 2, len(order) - 1):
        path, before = order[place], {own: fusion.changes[own] for own in order[:place]}
        expected = reference.solved(layers[path], before, SMALL, OBJECTIVE)
        found = fusion.changes[path]
        assert float((found - expected).norm() / expected.norm()) < 2e-3, path


def test_one_concept_alone_is_its_own_model(tiny: Base, members: list[Member]) -> None:
    only = members[:1]
    alone = fuse(tiny, only, MORE, Objective(1e-8), EXACT)
    for outcome in alone.outcomes.values():
        assert outcome.after[0] <= 1e-5 * outcome.before[0]
    held_out = HeldOut(tiny, only, HeldOutPlan(prompts=["a picture of {concept}"], captions=["a boy"], steps=2))
    with alone.in_place(tiny) as fused:
        assert held_out.error(only[0].concept.text, fused) < 0.05  # what a few points do not cover


def test_what_is_missed_on_the_way_is_made_up_for(tiny: Base, members: list[Member]) -> None:
    held_out = HeldOut(tiny, members, HeldOutPlan(prompts=["a picture of {concept}"], captions=["a boy"], steps=4))
    scores = []
    for sequential in (True, False):
        each = fuse(tiny, members, dataclasses.replace(MORE, sequential=sequential), OBJECTIVE, EXACT)
        with each.in_place(tiny) as fused:
            scores.append(held_out.score(fused))
    assert sum(scores[0].errors.values()) < sum(scores[1].errors.values())


def test_solvers_agree(tiny: Base, members: list[Member], fusion: Fusion) -> None:
    for solver in (LBFGS(precondition=True), CG()):
        other = fuse(tiny, members, SMALL, OBJECTIVE, dict.fromkeys(Stage, solver))
        for path, change in fusion.changes.items():
            torch.testing.assert_close(other.changes[path], change, rtol=1e-3, atol=1e-3 * float(change.abs().max()))


def test_changes_have_the_sum_of_ranks(tiny: Base, members: list[Member], fusion: Fusion) -> None:
    known = directions_of(tiny, members)
    narrower = 0
    for path, change in fusion.changes.items():
        directions = known[path]
        assert directions is not None
        if directions.shape[1] < len(change):
            basis = torch.linalg.qr(directions.double()).Q
            assert float((change - basis @ (basis.mT @ change)).norm()) <= 1e-6 * float(change.norm())
            narrower += 1
    assert narrower
    _, factors = as_low_rank(tiny, members, fusion)
    assert all(each.lost == 0 for each in factors.values())


@pytest.mark.parametrize(("width", "most"), [(5120, 0.2), (200, 0.3)])
def test_biases_convolutions_and_normalisations_too(tiny: Base, width: int, most: float) -> None:
    """Two concepts of full changes of every kind of layer, biases and normalisations; wide convolutions apart."""
    members = []
    for number, name in enumerate(("duck", "fox")):
        concept = tiny_concept(tiny, name, seed=number)
        network = {}
        generator = torch.Generator().manual_seed(number)
        for layer in layers_of(tiny).values():
            module = layer.module
            if layer.stage is Stage.TEXT or not isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)):
                continue
            kind = ("w_norm", "b_norm") if is_elementwise(module) else ("diff", "diff_b")
            weight, bias = module.weight, module.bias
            assert isinstance(weight, nn.Parameter)
            network[f"{layer.file_name}.{kind[0]}"] = 0.02 * torch.randn(weight.shape, generator=generator)
            if isinstance(bias, nn.Parameter):
                network[f"{layer.file_name}.{kind[1]}"] = 0.02 * torch.randn(bias.shape, generator=generator)
        members.append(Member(dataclasses.replace(concept, network=network)))
    collection = dataclasses.replace(MORE, moment_width=width, points=32)
    layers = changed_layers(tiny, members, Stage.SPATIAL)
    in_order = {layer.path for layer in layers if collection.solves_in_order(layer)}
    assert len(in_order) > 0 and (len(in_order) < len(layers)) == (width == 200)
    fusion = fuse(tiny, members, collection, OBJECTIVE, EXACT)
    assert {path for path, each in fusion.outcomes.items() if each.in_order} == in_order
    only = fuse(tiny, members[:1], collection, Objective(1e-6), EXACT)
    reached = [each for each in only.outcomes.values() if each.in_order and each.before[0] > 0]
    lost = sorted(each.after[0] / each.before[0] for each in reached)
    assert lost[len(lost) // 2] < 0.05  # normalisations' gains act after what was rounded
    held_out = HeldOut(tiny, members, HeldOutPlan(prompts=["a picture of {concept}"], captions=["a boy"], steps=2))
    with only.in_place(tiny) as fused:
        assert held_out.error(members[0].concept.text, fused) < most


def test_layers_that_are_known_are_not_solved_again(
    tiny: Base, members: list[Member], fusion: Fusion, tmp_path: Path
) -> None:
    class Stopped(Exact):
        left = 20

        def solve(self, problems):  # type: ignore[no-untyped-def]
            if self.left == 0:
                raise KeyboardInterrupt
            object.__setattr__(self, "left", self.left - 1)
            return super().solve(problems)

    kept, hooks_before = SolvedLayers(tmp_path, "key"), hooks(tiny)
    solvers = {**EXACT, Stage.SPATIAL: Stopped(EXACT[Stage.SPATIAL].cutoff)}
    with pytest.raises(KeyboardInterrupt):
        fuse(tiny, members, SMALL, OBJECTIVE, solvers, solutions=kept)
    assert hooks(tiny) == hooks_before
    spatial = {layer.path for layer in changed_layers(tiny, members, Stage.SPATIAL)}
    assert len(kept.read(spatial, metrics=False)) == 20
    solvers[Stage.SPATIAL] = Stopped(EXACT[Stage.SPATIAL].cutoff)
    object.__setattr__(solvers[Stage.SPATIAL], "left", len(spatial) - 20)
    again = fuse(tiny, members, SMALL, OBJECTIVE, solvers, solutions=kept)
    assert all(torch.equal(change, again.changes[path]) for path, change in fusion.changes.items())
    # Another process that cannot read them would wait at a layer where this one has nothing to say.
    with pytest.raises(KeyboardInterrupt):
        fuse(tiny, members, SMALL, OBJECTIVE, solvers, solutions=kept, processes=BesideOneWithoutSolutions(0, 1))


class BesideOneWithoutSolutions(Processes):
    def gathered(self, own: T) -> list[T]:
        return [own, cast(T, set())] if isinstance(own, set) else [own]


def test_the_plan_counts_the_passes(tiny: Base, members: list[Member]) -> None:
    captions, layers = OBJECTIVE.captions, tiny.topology.layers
    counter = Counter(tiny)
    fuse(tiny, members, SMALL, OBJECTIVE, EXACT)
    text = cost.recording_passes(SMALL, (Stage.TEXT, Stage.KEY_VALUE), 2, len(captions), layers)
    in_order = cost.sequential_passes(SMALL, 2, len(captions), layers)
    assert counter.taken() == sum(text.values(), in_order)


def test_residual_streams_are_what_layers_add_to(tiny: Base) -> None:
    streams = residual_streams(tiny.unet)
    assert len(streams) >= 4 * len(tiny.topology.cross_attention) - 3
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    path = next(path for path in streams if path.endswith("attn1.to_out.0"))
    behind = path.replace("attn1.to_out.0", "norm2")
    with Attachment() as attachment, torch.no_grad():
        for name in (streams[path], behind):
            hook = tiny.unet.get_submodule(name).register_forward_pre_hook(
                lambda _, x, name=name: seen.update({name: (x[0], x[0])})
            )
            attachment.add_hook(hook)
        outputs: list[Tensor] = []
        module = tiny.unet.get_submodule(path)
        attachment.add_hook(module.register_forward_hook(lambda _, __, y: outputs.append(y)))
        states = prompt_states(tiny, ["a dog"])
        latents = torch.randn(1, tiny.topology.latent_channels, 8, 8)
        with layerwise_states(tiny.unet):
            tiny.unet(latents, 1, **states.for_unet(latents))
    torch.testing.assert_close(seen[streams[path]][0] + outputs[0], seen[behind][0])


def test_numbers_that_overflow_are_refused_by_the_layers_name(tiny: Base, members: list[Member]) -> None:
    layer = next(layer for layer in layers_of(tiny).values() if layer.path.endswith("attn1.to_q"))
    weight = layer.module.weight
    assert isinstance(weight, nn.Parameter)
    broken = put_in_place({layer.path: layer.module}, {layer.path: torch.full_like(weight, float("nan"))})
    with broken, pytest.raises(MixshowError, match="no numbers"):
        fuse(tiny, members, SMALL, OBJECTIVE, EXACT)
