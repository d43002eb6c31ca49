"""Networks that act in their regions only."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from mixshow.lycoris import Network, create_network, load_network
from mixshow.lycoris.naming import file_name
from mixshow.models import Base, cross_attention_layers
from mixshow.sampling.compose import compose
from mixshow.sampling.directed import DirectedNetwork, Direction, network_marks
from mixshow.sampling.precision import Precision
from mixshow.sampling.regional_attention import RegionPlan
from mixshow.sampling.regions import Edges, PixelBox, Region
from mixshow.sampling.scene import Scene

SIZE = (128, 64)
LATENTS = (8, 16)
WHOLE, LEFT, RIGHT = PixelBox(0, 0, *SIZE), PixelBox(0, 0, 64, 64), PixelBox(64, 0, 128, 64)
TEXT = ("q_proj", "fc1")
UNET = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1", "conv_in", "time_emb_proj", "linear_1")
ALGORITHMS = {
    "locon": {},
    "dora": {"algo": "locon", "weight_decompose": True},
    "diag-oft": {"algo": "diag-oft"},
}


def network(base: Base, kind: str = "locon", *, seed: int = 0, text: bool = True) -> Network:
    """A strong random network on layers of every form, of both models."""
    endings = {"unet": UNET, "text_encoder": TEXT if text else ()}
    targets = [
        file_name(name, path, base.models)
        for name, chosen in endings.items()
        for path, module in base.models[name].named_modules()
        if path.endswith(chosen) and isinstance(module, nn.Linear | nn.Conv2d)
    ]
    made = create_network(base.models, targets=targets, dim=2, **ALGORITHMS[kind])
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return made.requires_grad_(False).eval()


def latents_of(base: Base, scene: Scene, networks: Sequence[DirectedNetwork] = ()) -> Tensor:
    """The latents of a scene's picture."""
    seen: list[Tensor] = []
    compose(base, scene, seeds=[0], networks=networks, callback=lambda step: seen.append(step["latents"].clone()))
    return seen[-1]


def scene_of(*regions: Region, prompt: str = "a dog", edges: Edges = Edges.HARD) -> Scene:
    return Scene(prompt, SIZE, "red", regions, edges=edges, guidance=2.0, steps=2, precision=Precision.FP32)


def directed(network: Network, *regions: int) -> DirectedNetwork:
    return DirectedNetwork(network, frozenset(regions))


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_over_the_whole_picture_it_is_the_attached_network(tiny: Base, kind: str) -> None:
    scene = scene_of(Region(WHOLE, "a boy", "blue"))
    acting = network(tiny, kind)
    found = latents_of(tiny, scene, [directed(acting, 0)])
    with acting:
        expected = latents_of(tiny, scene)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, latents_of(tiny, scene), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize(
    "region",
    [
        Region(PixelBox(0, 0, 1, 1), "a boy", "blue"),  # has no position of its own with hard edges
        Region(WHOLE, "a boy", "blue", base_ratio=1.0),
        Region(WHOLE, "a boy", "blue", span=(0.9, 1.0)),
    ],
)
def test_where_its_region_does_not_act_it_is_the_base(tiny: Base, kind: str, region: Region) -> None:
    scene = scene_of(region)
    assert torch.equal(latents_of(tiny, scene, [directed(network(tiny, kind), 0)]), latents_of(tiny, scene))


def test_two_networks_in_any_order(tiny: Base) -> None:
    regions = [Region(PixelBox(0, 10, 70, 64), "a boy", "blue"), Region(RIGHT, "a girl", "blue", 0.3)]
    networks = [network(tiny, "dora"), network(tiny, seed=1)]
    found = []
    for order in ((0, 1), (1, 0)):
        scene = scene_of(*(regions[i] for i in order), edges=Edges.SOFT)
        for listed in (order, order[::-1]):
            found.append(latents_of(tiny, scene, [directed(networks[i], order.index(i)) for i in listed]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-4)


def test_outputs_change_by_the_share_of_the_position(tiny: Base) -> None:
    """out = base + g (changed - base), of every layer by itself."""
    regions = [Region(PixelBox(0, 10, 70, 64), "a boy", base_ratio=0.25), Region(RIGHT, "a girl")]
    acting = [directed(network(tiny, "dora"), 0)]
    plan = RegionPlan(regions, "a dog", "", size=SIZE, edges=Edges.SOFT, marks=network_marks(acting, 2))
    gate = 0.75 * plan.shares(*LATENTS)[1].float()
    block = cross_attention_layers(tiny.unet)[0].removesuffix(".attn2")
    inputs = torch.randn(2, *LATENTS, 16, generator=torch.Generator().manual_seed(0))
    cases = [
        (f"{block}.attn1.to_q", inputs.flatten(1, 2), gate.flatten()[:, None]),
        (f"{block}.ff.net.0.proj", inputs.flatten(1, 2), gate.flatten()[:, None]),
        ("down_blocks.0.resnets.0.conv1", inputs.permute(0, 3, 1, 2), gate),
        ("down_blocks.0.resnets.0.time_emb_proj", torch.ones(2, 64), torch.zeros(1)),
    ]
    for path, x, weight in cases:
        module = tiny.unet.get_submodule(path)
        with torch.no_grad():
            base = module(x)
            with Direction(tiny, plan, acting).attach():
                found = module(x)
            with acting[0].network:
                changed = module(x)
        torch.testing.assert_close(found, base + weight * (changed - base), rtol=1e-5, atol=1e-5)
        assert not torch.equal(changed, base)


def test_keys_and_prompts_are_the_network_s_for_its_regions_texts_alone(tiny: Base) -> None:
    regions = [Region(LEFT, "a boy", "blue"), Region(RIGHT, "a boy", "blue"), Region(PixelBox(0, 0, 9, 9), "a girl")]
    acting = [directed(network(tiny), 1)]
    plan = RegionPlan(regions, "a dog", "red", size=SIZE, marks=network_marks(acting, 3))
    assert plan.texts == [("a dog", "red"), ("a boy", "blue"), ("a boy", "blue"), ("a girl", "")]
    direction = Direction(tiny, plan, acting)
    bare = RegionPlan(regions, "a dog", "red", size=SIZE)
    with torch.no_grad():
        states = plan.encode(tiny, guided=True, under=direction.encoding).states
        without = bare.encode(tiny, guided=True).states
        with acting[0].network:
            changed = bare.encode(tiny, guided=True).states
        torch.testing.assert_close(states[:, [0, 1, 3]], without)
        torch.testing.assert_close(states[:, 2], changed[:, 1])
        assert not torch.allclose(changed[:, 1], without[:, 1], rtol=1e-2, atol=1e-2)
        projection = tiny.unet.get_submodule(cross_attention_layers(tiny.unet)[0]).to_k
        x = states[:, :, 0].flatten(0, 1)
        base = projection(x)
        with acting[0].network:
            whole = projection(x)
        with direction.attach():
            found = projection(x)
    for text in range(8):
        torch.testing.assert_close(found[text], (whole if text % 4 == 2 else base)[text])


def test_everything_comes_off_also_after_an_error(tiny: Base) -> None:
    scene = scene_of(Region(LEFT, "a boy"), Region(RIGHT, "a girl"))
    acting = [directed(network(tiny), 0), directed(network(tiny, "dora"), 1)]
    before = latents_of(tiny, scene)

    def fail(step: dict) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        compose(tiny, scene, seeds=[0], networks=acting, callback=fail)
    assert torch.equal(latents_of(tiny, scene), before)
    for model in tiny.models.values():
        assert not any("forward" in module.__dict__ for module in model.modules())


def test_networks_over_all_act_beside_those_of_regions(tiny: Base) -> None:
    """A style over everything and a region's own network over everything add up like two attached ones."""
    scene = scene_of(Region(WHOLE, "a boy", "blue"))
    style, own = network(tiny, seed=1, text=False), network(tiny, text=False)
    with style:
        found = latents_of(tiny, scene, [directed(own, 0)])
        with own:
            expected = latents_of(tiny, scene)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_network_of_strength_zero_is_none(tiny: Base) -> None:
    scene = scene_of(Region(LEFT, "a boy"))
    silent = load_network(tiny.models, network(tiny).file_tensors(), multiplier=0.0)
    assert torch.equal(latents_of(tiny, scene, [directed(silent, 0)]), latents_of(tiny, scene))
