"""Regions found from attention to their concepts' tokens."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from mixshow.edlora.attention_maps import AttentionRecorder, concept_positions
from mixshow.edlora.concept import attach_concepts, concept_network
from mixshow.edlora.layerwise import layerwise_states
from mixshow.models import Base, cross_attention_layers, encode_prompts
from mixshow.sampling.areas import Mask
from mixshow.sampling.compose import compose
from mixshow.sampling.directed import DirectedNetwork
from mixshow.sampling.found import AttentionSearch
from mixshow.sampling.isolation import Isolation
from mixshow.sampling.precision import Precision
from mixshow.sampling.regional_attention import RegionPlan, regional_attention
from mixshow.sampling.regions import Edges, PixelBox, Region
from mixshow.sampling.scene import Scene
from mixshow.sampling.sought import Sought
from tests.tiny import tiny_concept

SIZE = (128, 64)
LATENTS = (8, 16)
PIP, LUMA = "a photo of <pip1> <pip2>", "a photo of <luma1> <luma2>"
BOTH = "<pip1> <pip2> , <luma1> <luma2> at the beach"


@pytest.fixture(scope="module")
def base(tiny: Base) -> Iterator[Base]:
    concepts = [tiny_concept(tiny, name, seed=seed) for seed, name in enumerate(("pip", "luma"))]
    known, attachment = attach_concepts(tiny, concepts)
    with attachment:
        yield known


def scene_of(*regions: Region, steps: int = 4) -> Scene:
    options = {"edges": Edges.SOFT, "steps": steps, "guidance": 2.0, "precision": Precision.FP32}
    return Scene(BOTH, SIZE, regions=regions, **options)


def latents_of(base: Base, scene: Scene, seeds: list[int]) -> list[list[torch.Tensor]]:
    """Every picture's latents after every step."""
    seen: list[torch.Tensor] = []
    compose(base, scene, seeds=seeds, callback=lambda step: seen.append(step["latents"].clone()))
    return [seen[i : i + scene.steps] for i in range(0, len(seen), scene.steps)]


def sought(prompt: str, *, threshold: float = 0.3, after: int = 2) -> Region:
    return Region(Sought(threshold, after), prompt)


def test_the_first_steps_are_the_plain_prompt(base: Base) -> None:
    plain = latents_of(base, scene_of(), [0])[0]
    found = latents_of(base, scene_of(sought(PIP), sought(LUMA)), [0])[0]
    for a, b in zip(plain[:2], found[:2]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(plain[2], found[2], rtol=1e-3, atol=1e-3)


def test_every_picture_has_areas_of_its_own(base: Base, caplog: pytest.LogCaptureFixture) -> None:
    scene = scene_of(sought(PIP), sought(LUMA))
    with caplog.at_level(logging.INFO):
        together = latents_of(base, scene, [3, 4])
    assert sum("of the picture" in line for line in caplog.messages) == 4
    for seed, latents in zip((3, 4), together):
        assert torch.equal(latents[-1], latents_of(base, scene, [seed])[0][-1])


def test_maps_are_those_of_the_recorder(base: Base) -> None:
    """Against plain attention whose probabilities are recorded in every layer."""
    plan = RegionPlan([sought(PIP), sought(LUMA)], BOTH, "", size=SIZE, edges=Edges.SOFT)
    search = AttentionSearch(base, plan)
    latents = torch.randn(1, 4, *LATENTS, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = plan.encode(base, guided=True).states
        search.begin_step(0, 4)
        with regional_attention(base.unet, plan, states, watcher=search), layerwise_states(base.unet):
            base.unet(latents.repeat(2, 1, 1, 1), 500, encoder_hidden_states=states[:, 0])
        recorder = AttentionRecorder(concept_positions(base, [BOTH], ["<luma1>", "<luma2>"]))
        with recorder.attach(base.unet), layerwise_states(base.unet):
            base.unet(latents, 500, encoder_hidden_states=encode_prompts(base, [BOTH]))
    recorded = {map_.shape[2] * map_.shape[3]: map_.mean(1).flatten() for map_ in recorder.maps(*LATENTS)}
    assert recorded.keys() == search.sums.keys()
    for positions, map_ in recorded.items():
        mean = search.sums[positions][1] / search.sums[positions][1].sum()
        torch.testing.assert_close(mean, map_ / map_.sum(), rtol=1e-4, atol=1e-6)


def test_the_area_is_where_the_map_is(base: Base) -> None:
    plan = RegionPlan([sought(PIP, after=1), sought(LUMA, after=1)], BOTH, "", size=SIZE, edges=Edges.SOFT)
    search = AttentionSearch(base, plan)
    search.begin_step(0, 4)
    assert plan.shares(*LATENTS)[0].eq(1).all()
    left = torch.zeros(LATENTS)
    left[:, :6] = 1
    search.sums[LATENTS[0] * LATENTS[1]] = torch.stack([left, 1 - left]).flatten(1)
    search.sums[8] = torch.ones(2, 8)  # a coarse layer that says nothing
    search.begin_step(1, 4)
    assert not search.watching
    torch.testing.assert_close(plan.shares(*LATENTS)[1], left.double())
    assert plan.shares(1, 2)[1:].sum() == 2
    search.begin_step(0, 4)
    assert search.watching
    assert plan.shares(*LATENTS)[0].eq(1).all()


def test_the_guard_lets_concepts_be_seen_that_have_no_place_yet(base: Base) -> None:
    plan = RegionPlan([sought(PIP), Region(PixelBox(0, 0, 64, 64), LUMA)], BOTH, "", size=SIZE, edges=Edges.SOFT)
    guard, shares = plan.guard(base), plan.shares(*LATENTS)[1:].flatten(1)
    text, everywhere = torch.tensor([0]), torch.arange(LATENTS[0] * LATENTS[1])
    guarded, let = guard.bias(shares, text, everywhere), guard.without([0]).bias(shares, text, everywhere)
    assert guarded is not None and guarded.isneginf().all(1).any()  # a token that no position reads
    assert let is not None and not let.isneginf().all(1).any() and let.isneginf().any()
    states = plan.encode(base, guided=True).states
    with regional_attention(base.unet, plan, states, guard) as _, torch.no_grad():
        seen = _attended(base)
    with regional_attention(base.unet, plan, states, guard.without([0])) as _, torch.no_grad():
        torch.testing.assert_close(_attended(base), seen)


def _attended(base: Base) -> torch.Tensor:
    module = base.unet.get_submodule(cross_attention_layers(base.unet)[0])
    return module(torch.randn(2, LATENTS[0] * LATENTS[1], 16, generator=torch.Generator().manual_seed(1)))


def test_a_region_without_a_place_follows_the_scene_and_is_named(base: Base, caplog: pytest.LogCaptureFixture) -> None:
    plan = RegionPlan([sought(PIP, after=1), sought(LUMA, after=1)], BOTH, "", size=SIZE, edges=Edges.SOFT)
    search = AttentionSearch(base, plan)
    search.begin_step(0, 4)
    maps = torch.rand(128, generator=torch.Generator().manual_seed(0))
    search.sums[128] = torch.stack([maps, torch.zeros(128)])
    search.begin_step(1, 4)
    assert isinstance(plan.regions[0].area, Mask)
    assert plan.shares(*LATENTS)[2].eq(0).all()
    assert "regions[1]: the picture has no place where it attends most to <luma1> <luma2>" in caplog.text


def test_regions_in_any_order_are_the_same_picture(base: Base) -> None:
    regions = [sought(PIP), sought(LUMA), Region(PixelBox(0, 0, 30, 30), "a hat", priority=1)]
    found = [latents_of(base, scene_of(*order), [0])[0][-1] for order in (regions, regions[::-1])]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_everything_together_on_every_kind_of_base(each_base: Base) -> None:
    """Isolation, guard, a network of a region and a region that is found, in one scene; and nothing stays."""
    processors, changed = dict(each_base.unet.attn_processors), changed_modules(each_base)
    known, attachment = attach_concepts(each_base, [tiny_concept(each_base, "pip")])
    with attachment:
        regions = (sought(PIP, after=1), Region(PixelBox(64, 0, 128, 64), "a boy", base_ratio=0.2))
        options = {"regions": regions, "steps": 3, "isolation": Isolation(), "guard": True, "precision": Precision.FP32}
        scene = Scene("<pip1> <pip2> , a dog", SIZE, edges=Edges.SOFT, **options)
        network = concept_network(known, tiny_concept(each_base, "luma", seed=1, strength=0.5))
        networks = [DirectedNetwork(network, frozenset({1}))]
        first, second = (compose(known, scene, seeds=[0], networks=networks)[0].tobytes() for _ in range(2))
        assert first == second != compose(known, scene, seeds=[0])[0].tobytes()
    assert all(each_base.unet.attn_processors[name] is processor for name, processor in processors.items())
    assert changed_modules(each_base) == changed


def changed_modules(base: Base) -> set[str]:
    """The modules that have a forward of their own; a concept may be on the base for other tests."""
    found = (
        (f"{name}.{path}", module) for name, model in base.models.items() for path, module in model.named_modules()
    )
    return {path for path, module in found if "forward" in module.__dict__}
