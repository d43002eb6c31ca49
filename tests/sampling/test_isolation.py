"""Regions kept apart in self-attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mixshow.models import Base, self_attention_layers
from mixshow.sampling.areas import Feathered
from mixshow.sampling.compose import compose
from mixshow.sampling.isolation import IsolatedRegions, Isolation
from mixshow.sampling.regional_attention import RegionPlan
from mixshow.sampling.regions import Edges, PixelBox, Region
from mixshow.sampling.scene import Scene

SIZE = (128, 64)
LATENTS = (8, 16)
LEFT, RIGHT = PixelBox(0, 0, 64, 64), PixelBox(64, 0, 128, 64)
SOFT = [
    Region(Feathered(PixelBox(0, 10, 60, 64), 24), "a boy"),
    Region(PixelBox(40, 0, 100, 60), "a girl", weight=2.0),
    Region(PixelBox(90, 0, 120, 64), "a toy", priority=1),
]


def plan_of(regions: list[Region], edges: Edges = Edges.SOFT) -> RegionPlan:
    return RegionPlan(regions, "a dog", "", size=SIZE, edges=edges)


def attended(base: Base, plan: RegionPlan, isolation: Isolation, hidden: Tensor) -> Tensor:
    """The output of the first self-attention layer."""
    module = base.unet.get_submodule(self_attention_layers(base.unet)[0])
    with torch.no_grad(), IsolatedRegions(plan, isolation).attach(base.unet):
        return module(hidden)


def hidden_states() -> Tensor:
    return torch.randn(2, LATENTS[0] * LATENTS[1], 16, generator=torch.Generator().manual_seed(0))


def test_every_self_attention_layer_is_found(each_base: Base) -> None:
    layers = self_attention_layers(each_base.unet)
    assert len(layers) == each_base.topology.layers
    assert not set(layers) & set(each_base.topology.cross_attention)


def test_attention_is_that_of_the_formula(tiny: Base) -> None:
    """Against probabilities that are weighted and normalised again, in float64."""
    plan, hidden = plan_of(SOFT), hidden_states()
    module = tiny.unet.get_submodule(self_attention_layers(tiny.unet)[0])
    found = attended(tiny, plan, Isolation(0.7), hidden)
    shares = plan.shares(*LATENTS).flatten(1)
    allowed = torch.zeros(shares.shape[1], shares.shape[1], dtype=torch.float64)
    for p in range(shares.shape[1]):
        for q in range(shares.shape[1]):
            own = (shares[1:, p] * (shares[0, q] + shares[1:, q])).sum()
            allowed[p, q] = 0.3 + 0.7 * (shares[0, p] + own)
    with torch.no_grad():
        query, key, value = (
            part(hidden).double().unflatten(-1, (module.heads, -1)).transpose(1, 2)
            for part in (module.to_q, module.to_k, module.to_v)
        )
        probabilities = allowed * (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        result = (probabilities / probabilities.sum(-1, keepdim=True)) @ value
        expected = module.to_out[0](result.transpose(1, 2).flatten(2).float())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_happens_in_one_region_does_not_reach_the_other(tiny: Base) -> None:
    plan = plan_of([Region(LEFT, "a boy"), Region(PixelBox(64, 0, 96, 64), "a girl")])
    hidden = hidden_states()
    changed = hidden.unflatten(1, LATENTS).clone()
    changed[:, :, 8:12] += 1  # the girl's place
    first, second = (attended(tiny, plan, Isolation(), x) for x in (hidden, changed.flatten(1, 2)))
    moved = (first - second).abs().amax(-1)[0].view(LATENTS)
    assert (moved[:, :8] == 0).all()
    assert (moved[:, 12:] > 0).all()  # the background sees everything
    plain = (attended(tiny, plan, Isolation(0.0), x) for x in (hidden, changed.flatten(1, 2)))
    assert not torch.allclose(*(x.unflatten(1, LATENTS)[:, :, :8] for x in plain))


@pytest.mark.parametrize("edges", Edges)
@pytest.mark.parametrize(
    ("regions", "strength"),
    [([Region(PixelBox(0, 0, *SIZE), "a boy")], 1.0), ([Region(LEFT, "a boy")], 1.0), (SOFT[1:], 0.0)],
)
def test_nothing_changes_where_nothing_is_kept_apart(
    tiny: Base, edges: Edges, regions: list[Region], strength: float
) -> None:
    hidden = hidden_states()
    module = tiny.unet.get_submodule(self_attention_layers(tiny.unet)[0])
    with torch.no_grad():
        expected = module(hidden)
    assert torch.equal(attended(tiny, plan_of(regions, edges), Isolation(strength), hidden), expected)


def test_the_order_of_regions_does_not_matter(tiny: Base) -> None:
    hidden = hidden_states()
    found = [attended(tiny, plan_of(order), Isolation(), hidden) for order in (SOFT, SOFT[::-1])]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_no_region_vanishes_in_the_coarsest_layer() -> None:
    plan = plan_of([Region(PixelBox(0, 0, 12, 12), "a boy"), Region(PixelBox(100, 40, 128, 64), "a girl")])
    weights = Isolation().weights(plan.shares(1, 2).flatten(1))
    boy, girl = (plan.shares(1, 2)[1 + i].max() for i in range(2))
    torch.testing.assert_close(weights[0, 1], (1 - boy * girl).float())


def test_it_acts_in_its_part_of_the_steps(tiny: Base) -> None:
    regions = (Region(LEFT, "a boy"), Region(RIGHT, "a girl"))
    seen: dict[tuple[float, float] | None, list[Tensor]] = {}
    for span in (None, (0.0, 0.5), (0.5, 1.0)):
        isolation = None if span is None else Isolation(span=span)
        steps = seen.setdefault(span, [])
        scene = Scene("a dog", SIZE, regions=regions, steps=4, isolation=isolation)
        compose(tiny, scene, seeds=[0], callback=lambda step, steps=steps: steps.append(step["latents"].clone()))
    changed = {
        span: [not torch.equal(a, b) for a, b in zip(seen[None], seen[span])] for span in ((0.0, 0.5), (0.5, 1.0))
    }
    assert changed == {(0.0, 0.5): [True] * 4, (0.5, 1.0): [False, False, True, True]}


def test_processors_come_back_also_after_an_error(tiny: Base) -> None:
    before = dict(tiny.unet.attn_processors)
    regions = (Region(LEFT, "a boy"), Region(RIGHT, "a girl"))
    scene = Scene("a dog", SIZE, regions=regions, steps=2, isolation=Isolation(), guard=True)

    def fail(step: dict) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        compose(tiny, scene, seeds=[0], callback=fail)
    assert all(tiny.unet.attn_processors[name] is processor for name, processor in before.items())


def test_scores_of_half_precision_are_finite(tiny: Base) -> None:
    regions = IsolatedRegions(plan_of(SOFT), Isolation())
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        bias = regions.bias(LATENTS[0] * LATENTS[1], torch.zeros(1, dtype=dtype))
        assert bias.dtype is dtype
        query = torch.randn(1, 1, bias.shape[0], 8).to(dtype)
        result = functional.scaled_dot_product_attention(query, query, query, bias)
        assert result.isfinite().all()
