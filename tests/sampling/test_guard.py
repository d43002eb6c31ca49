"""Concept tokens that are attended to from their regions only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixshow.edlora.concept import attach_concepts
from mixshow.models import Base, PromptReading, cross_attention_layers, encode_prompts
from mixshow.models.prompts import prompt_ids
from mixshow.sampling.areas import Feathered
from mixshow.sampling.compose import compose
from mixshow.sampling.guard import region_tokens, token_columns
from mixshow.sampling.precision import Precision
from mixshow.sampling.regional_attention import RegionPlan, regional_attention
from mixshow.sampling.regions import Edges, PixelBox, Region
from mixshow.sampling.scene import Scene
from tests.tiny import tiny_concept

SIZE = (128, 64)
LATENTS = (8, 16)
PIP, LUMA = "a photo of <pip1> <pip2>", "a photo of <luma1> <luma2>"
BOTH = "<pip1> <pip2> , <luma1> <luma2> at the beach"
LEFT = Region(PixelBox(0, 0, 48, 64), PIP, "blue")
RIGHT = Region(PixelBox(64, 0, 128, 64), LUMA, "red")


@pytest.fixture(scope="module")
def base(tiny: Base) -> Iterator[Base]:
    concepts = [tiny_concept(tiny, name, seed=seed) for seed, name in enumerate(("pip", "luma"))]
    known, attachment = attach_concepts(tiny, concepts)
    with attachment:
        yield known


def columns_of(base: Base, prompt: str, token: str) -> Tensor:
    """Where a token stands in a prompt, `[tokens]`."""
    return token_columns(base.vocabulary, prompt_ids(base, [base.vocabulary.bind(prompt, 0)])[0], token)


def attended(base: Base, plan: RegionPlan, *, guarded: bool, pictures: int = 2, layer: int = 0) -> Tensor:
    """A cross-attention layer's output before its last projection, `[halves * pictures, positions, width]`."""
    module = base.unet.get_submodule(cross_attention_layers(base.unet)[layer])
    positions = LATENTS[0] * LATENTS[1]
    hidden = torch.randn(2 * pictures, positions, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        states = plan.encode(base, guided=True).states
        with regional_attention(base.unet, plan, states, plan.guard(base) if guarded else None):
            return module(hidden)


def reference(base: Base, plan: RegionPlan, *, pictures: int = 2) -> Tensor:
    """The same, text by text: probabilities weighted by the shares of the tokens' regions, and normalised again."""
    module = base.unet.get_submodule(cross_attention_layers(base.unet)[0])
    hidden = torch.randn(2 * pictures, LATENTS[0] * LATENTS[1], 16, generator=torch.Generator().manual_seed(1))
    weights, shares = plan.weights(*LATENTS).flatten(1), plan.shares(*LATENTS)[1:].flatten(1)
    total = torch.zeros(hidden.shape, dtype=torch.float64)
    with torch.no_grad():
        query = module.to_q(hidden).double().unflatten(-1, (module.heads, -1)).transpose(1, 2)
        for number, (prompt, negative) in enumerate(plan.texts):
            for half, text in enumerate((negative, prompt)):
                state = encode_prompts(base, [text])[:, 0]
                key, value = (
                    part(state).double().unflatten(-1, (module.heads, -1)).transpose(1, 2)
                    for part in (module.to_k, module.to_v)
                )
                chosen = slice(half * pictures, (half + 1) * pictures)
                probabilities = (query[chosen] @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
                if half == 1 and prompt not in (PIP, LUMA):
                    for region, token in ((0, "<pip1>"), (0, "<pip2>"), (1, "<luma1>"), (1, "<luma2>")):
                        for column in columns_of(base, prompt, token).nonzero()[:, 0].tolist():
                            probabilities[..., column] *= shares[region][None, None]
                probabilities = probabilities / probabilities.sum(-1, keepdim=True)
                total[chosen] += weights[number, :, None] * (probabilities @ value).transpose(1, 2).flatten(2)
        return module.to_out[0](total.float())


@pytest.mark.parametrize("edges", Edges)
def test_probabilities_outside_count_by_the_shares_of_the_tokens_regions(base: Base, edges: Edges) -> None:
    regions = [
        Region(Feathered(PixelBox(0, 10, 60, 64), 24) if edges is Edges.SOFT else LEFT.area, PIP, "blue", 0.4),
        RIGHT,
    ]
    plan = RegionPlan(regions, BOTH, "a <pip1> <pip2>", size=SIZE, edges=edges, base_prompt=f"rain , {BOTH}")
    found = attended(base, plan, guarded=True)
    torch.testing.assert_close(found, reference(base, plan), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, attended(base, plan, guarded=False), rtol=1e-3, atol=1e-3)


def test_outside_its_region_a_token_s_own_state_changes_nothing(base: Base) -> None:
    """The state at a token's place, with all other places left as they are."""
    plan = RegionPlan([LEFT, RIGHT], BOTH, "", size=SIZE)
    module = base.unet.get_submodule(cross_attention_layers(base.unet)[0])
    hidden = torch.randn(1, LATENTS[0] * LATENTS[1], 16, generator=torch.Generator().manual_seed(1))
    column = columns_of(base, BOTH, "<pip2>")
    outputs = {guarded: [] for guarded in (False, True)}
    with torch.no_grad():
        states = plan.encode(base, guided=False).states
        other = states.clone()
        other[:, 0, :, column] += 1
        for guarded, results in outputs.items():
            guard = plan.guard(base) if guarded else None
            for given in (states, other):
                with regional_attention(base.unet, plan, given, guard):
                    results.append(module(hidden)[0])
    moved = {guarded: (a - b).abs().amax(-1).view(LATENTS) for guarded, (a, b) in outputs.items()}
    assert (moved[False][:, 6:8] > 0).all()  # between the regions, where the scene's prompt is read
    assert (moved[True] == 0).all()


def test_guarding_changes_nothing_where_no_other_prompt_names_a_concept(base: Base) -> None:
    plan = RegionPlan([LEFT, RIGHT], "a dog", "", size=SIZE, edges=Edges.SOFT)
    assert torch.equal(attended(base, plan, guarded=True), attended(base, plan, guarded=False))


def test_one_region_over_everything_is_its_plain_prompt(base: Base) -> None:
    plan = RegionPlan([Region(PixelBox(0, 0, *SIZE), PIP, base_ratio=0.5)], BOTH, "", size=SIZE)
    assert torch.equal(attended(base, plan, guarded=True), attended(base, plan, guarded=False))


def test_the_order_of_regions_does_not_matter(base: Base) -> None:
    found = [
        attended(base, RegionPlan(order, BOTH, "", size=SIZE, edges=Edges.SOFT), guarded=True)
        for order in ([LEFT, RIGHT], [RIGHT, LEFT])
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_a_prompt_that_is_also_a_region_s_own(base: Base) -> None:
    """Outside of the region its tokens are guarded all the same, inside they count in full."""
    plan = RegionPlan([Region(PixelBox(0, 0, 64, 64), PIP, "")], PIP, "", size=SIZE)
    weights = plan.guard(base).weights(plan.shares(*LATENTS)[1:].flatten(1))
    column = columns_of(base, PIP, "<pip1>")
    assert len(plan.texts) == 1
    assert weights[0].view(*LATENTS, -1)[:, :, column][:, :8].eq(1).all()
    assert weights[0].view(*LATENTS, -1)[:, :, column][:, 8:].eq(0).all()


def test_a_region_s_tokens(base: Base) -> None:
    region = Region(LEFT.area, "<pip1> <pip2> beside <luma1> <luma2> and <nobody>")
    assert region_tokens(region, base.vocabulary) == ("<pip1>", "<pip2>", "<luma1>", "<luma2>")
    named = Region(LEFT.area, region.prompt, tokens=("<pip1>", "<pip2>"))
    assert region_tokens(named, base.vocabulary) == ("<pip1>", "<pip2>")


def test_a_guarded_scene_differs_and_leaves_no_trace(base: Base) -> None:
    pictures = []
    for guard in (False, True, False):
        scene = Scene(BOTH, SIZE, regions=(LEFT, RIGHT), steps=2, guard=guard, precision=Precision.FP32)
        pictures.append(compose(base, scene, seeds=[0])[0].tobytes())
    assert pictures[0] == pictures[2] != pictures[1]


def test_tokens_are_guarded_in_every_window_of_a_long_prompt(base: Base) -> None:
    """The concept stands in the second window; a short text beside it is repeated to the same length."""
    reading = PromptReading(weights=True, windows=True)
    long = " ".join(["a dog"] * 14) + " (<pip1> <pip2>:1.2)"
    plan = RegionPlan([LEFT, RIGHT], long, "", size=SIZE)
    with torch.no_grad():
        states = plan.encode(base, guided=True, reading=reading).states
    ids = plan.ids(base, reading, states.shape[-2])
    assert ids.shape == states.shape[1:2] + states.shape[3:4]
    window = base.topology.max_tokens
    places = token_columns(base.vocabulary, ids, "<pip2>").nonzero().tolist()
    assert [text for text, _ in places] == [0, 1, 1]
    assert places[0][1] > window and places[2][1] == places[1][1] + window
    guarded = plan.guard(base, ids)
    assert guarded.owners[0, places[0][1]].tolist() == [True, False]
    scene = Scene(long, SIZE, regions=(LEFT, RIGHT), steps=2, reading=reading, precision=Precision.FP32)
    first, second = (compose(base, replace(scene, guard=on), seeds=[0])[0].tobytes() for on in (False, True))
    assert first != second
