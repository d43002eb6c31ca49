from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixshow.edlora.concept import attach_concepts
from mixshow.edlora.layerwise import layerwise_states
from mixshow.models import Base, cross_attention_layers, encode_prompts
from mixshow.sampling.areas import Mask
from mixshow.sampling.compose import compose
from mixshow.sampling.generate import sample
from mixshow.sampling.precision import Precision
from mixshow.sampling.regional_attention import RegionPlan, regional_attention
from mixshow.sampling.regions import Edges, PixelBox, Region
from mixshow.sampling.scene import Scene
from tests.tiny import tiny_concept

SIZE = (128, 64)
LATENTS = (8, 16)


def fixed_latents(pictures: int) -> Tensor:
    return torch.randn(pictures, 4, *LATENTS, generator=torch.Generator().manual_seed(0))


def predict(base: Base, plan: RegionPlan, *, pictures: int = 2, guided: bool = True) -> Tensor:
    """The UNet's output under a plan, for a batch of fixed random latents."""
    with torch.no_grad():
        states = plan.encode(base, guided=guided).states
        latents = fixed_latents(pictures).repeat(len(states), 1, 1, 1)
        with regional_attention(base.unet, plan, states), layerwise_states(base.unet):
            text = states[:, 0].repeat_interleave(pictures, 0)
            return base.unet(latents, 500, encoder_hidden_states=text).sample


def plain(base: Base, prompts: list[str], *, pictures: int = 2) -> Tensor:
    """The UNet's output with its own processors, for one prompt per half."""
    with torch.no_grad(), layerwise_states(base.unet):
        latents = fixed_latents(pictures).repeat(len(prompts), 1, 1, 1)
        text = encode_prompts(base, prompts).repeat_interleave(pictures, 0)
        return base.unet(latents, 500, encoder_hidden_states=text).sample


def test_no_region_is_the_plain_prompt(tiny: Base) -> None:
    plan = RegionPlan([], "a dog", "red", size=SIZE)
    torch.testing.assert_close(predict(tiny, plan), plain(tiny, ["red", "a dog"]), rtol=1e-5, atol=1e-5)


def test_one_region_covering_everything_is_its_plain_prompt(tiny: Base) -> None:
    whole = Region(PixelBox(0, 0, *SIZE), "a boy", "blue")
    plan = RegionPlan([whole], "a dog", "red", size=SIZE)
    torch.testing.assert_close(predict(tiny, plan), plain(tiny, ["blue", "a boy"]), rtol=1e-5, atol=1e-5)


def test_a_base_ratio_of_one_is_no_region(tiny: Base) -> None:
    regions = [
        Region(box, "a boy", "blue", base_ratio=1.0) for box in (PixelBox(0, 0, 64, 64), PixelBox(20, 0, 128, 50))
    ]
    plan = RegionPlan(regions, "a dog", "red", size=SIZE)
    torch.testing.assert_close(predict(tiny, plan), plain(tiny, ["red", "a dog"]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("edges", Edges)
def test_the_order_of_regions_does_not_matter(tiny: Base, edges: Edges) -> None:
    regions = [
        Region(PixelBox(0, 10, 50, 64), "a boy", "blue", 0.2),
        Region(PixelBox(30, 0, 100, 60), "a girl", weight=2.0),
        Region(PixelBox(90, 0, 128, 64), "a toy", priority=1),
    ]
    found = [
        predict(tiny, RegionPlan(order, "a dog", "red", size=SIZE, edges=edges)) for order in (regions, regions[::-1])
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_masks_of_zero_and_one_are_hard_boxes_on_the_coarsest_grid(tiny: Base) -> None:
    """A box of whole positions of the coarsest layers (1 x 2 here): soft or hard, box or mask are the same."""
    box = PixelBox(64, 0, 128, 64)
    plans = [
        RegionPlan([Region(area, "a boy", "blue", 0.2)], "a dog", "red", size=SIZE, edges=edges)
        for area in (box, Mask(box.coverage(64, 128, SIZE, Edges.SOFT)))
        for edges in Edges
    ]
    expected = predict(tiny, plans[0])
    assert not torch.allclose(expected, plain(tiny, ["red", "a dog"]), rtol=1e-3, atol=1e-3)
    for plan in plans[1:]:
        assert torch.equal(predict(tiny, plan), expected)


def test_removing_the_processors_restores_the_model(tiny: Base) -> None:
    before = plain(tiny, ["red", "a dog"])
    predict(tiny, RegionPlan([Region(PixelBox(0, 0, 64, 64), "a boy")], "a dog", "red", size=SIZE))
    assert torch.equal(plain(tiny, ["red", "a dog"]), before)


@pytest.mark.parametrize("edges", Edges)
def test_all_regions_in_one_call_equal_the_formula(tiny: Base, edges: Edges) -> None:
    """Against attention computed for every text at every position, weighted and summed."""
    regions = [
        Region(PixelBox(0, 10, 50, 64), "a boy", "blue", 0.2),
        Region(PixelBox(30, 0, 100, 60), "a girl", "red"),
        Region(PixelBox(90, 0, 128, 64), "a boy", "blue"),
    ]
    plan = RegionPlan(regions, "a dog on the beach", "red", size=SIZE, edges=edges)
    path = cross_attention_layers(tiny.unet)[0]
    module = tiny.unet.get_submodule(path)
    with torch.no_grad():
        states = plan.encode(tiny, guided=True).states
        hidden = torch.randn(4, LATENTS[0] * LATENTS[1], 16, generator=torch.Generator().manual_seed(1))
        with regional_attention(tiny.unet, plan, states):
            found = module(hidden)
        weights = plan.weights(*LATENTS).flatten(1).float()
        expected = torch.zeros_like(found)
        for text in range(len(plan.texts)):
            own = states[:, text, 0].repeat_interleave(2, 0)
            without_bias = module(hidden, encoder_hidden_states=own) - module.to_out[0].bias
            expected += weights[text, :, None] * without_bias
    torch.testing.assert_close(found, expected + module.to_out[0].bias, rtol=1e-5, atol=1e-6)


def test_regions_act_where_they_are(tiny: Base) -> None:
    left = Region(PixelBox(0, 0, 64, 64), "a boy")
    changed = Region(PixelBox(0, 0, 64, 64), "a red hat")
    path = cross_attention_layers(tiny.unet)[0]
    hidden = torch.randn(1, LATENTS[0] * LATENTS[1], 16, generator=torch.Generator().manual_seed(1))
    outputs = []
    for region in (left, changed):
        plan = RegionPlan([region], "a dog", "", size=SIZE)
        with torch.no_grad(), regional_attention(tiny.unet, plan, plan.encode(tiny, guided=False).states):
            outputs.append(tiny.unet.get_submodule(path)(hidden).view(*LATENTS, -1))
    moved = (outputs[0] - outputs[1]).abs().amax(-1)
    assert (moved[:, :8] > 0).all()
    assert (moved[:, 8:] == 0).all()


def test_keys_are_computed_once(tiny: Base) -> None:
    calls = []
    layer = tiny.unet.get_submodule(cross_attention_layers(tiny.unet)[3])
    hook = layer.to_k.register_forward_hook(lambda *_: calls.append(1))
    try:
        regions = (Region(PixelBox(0, 0, 64, 64), "a boy"), Region(PixelBox(9, 0, 99, 64), "a girl", span=(0.4, 0.7)))
        compose(tiny, Scene("a dog", SIZE, regions=regions, steps=3), seeds=[0, 1])
    finally:
        hook.remove()
    assert len(calls) == 1


def test_processors_come_back_also_after_an_error(tiny: Base) -> None:
    before = dict(tiny.unet.attn_processors)
    hooks = sum(len(module._forward_pre_hooks) for module in tiny.unet.modules())
    scene = Scene("a dog", SIZE, regions=(Region(PixelBox(0, 0, 64, 64), "a boy"),), steps=2)

    def fail(step: dict) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        compose(tiny, scene, seeds=[0], callback=fail)
    assert all(tiny.unet.attn_processors[name] is processor for name, processor in before.items())
    assert sum(len(module._forward_pre_hooks) for module in tiny.unet.modules()) == hooks


def test_attached_concepts_reach_their_regions(tiny: Base) -> None:
    base, attachment = attach_concepts(tiny, [tiny_concept(tiny, "pip")])
    with attachment:
        region = Region(PixelBox(0, 0, *SIZE), "a <pip1> <pip2>")
        inside = compose(base, Scene("a dog", SIZE, regions=(region,), steps=2, precision=Precision.FP32), seeds=[3])[0]
        options = {"seeds": [3], "width": SIZE[0], "height": SIZE[1], "steps": 2, "precision": Precision.FP32}
        alone = sample(base, ["a <pip1> <pip2>"], **options)[0]
    difference = max(abs(a - b) for a, b in zip(inside.tobytes(), alone.tobytes()))
    assert difference <= 1
    assert alone.tobytes() != sample(tiny, ["a dog"], **options)[0].tobytes()
