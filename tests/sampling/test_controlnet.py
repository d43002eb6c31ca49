"""ControlNets: as diffusers' own pipelines run them, and what only scenes have: sums, weights by place, layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from PIL import Image
from torch import Tensor, nn

from mixshow.models import Base, PromptStates, cross_attention_layers
from mixshow.sampling.conditions import adapter_condition
from mixshow.sampling.controlnet import control_condition
from mixshow.sampling.generate import start_noise
from mixshow.sampling.guide import Together, UNetInput, WeightMap, place_weight
from tests.sampling.test_pipeline import SIZE, pipeline_of, steps_of
from tests.tiny import tiny_adapter

_EMBEDDING = (4, 4, 8, 8)  # widths of the blocks that bring pictures to the size of latents


def picture(seed: int = 0) -> Image.Image:
    values = torch.randint(0, 256, (SIZE[1], SIZE[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(values.to(torch.uint8).numpy())


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """Its last layers start at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data.normal_(0, module.weight[0].numel() ** -0.5)
    return net.eval().requires_grad_(False)


def tiny_controlnet(base: Base, seed: int = 0, **options: Any) -> ControlNetModel:
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=_EMBEDDING, **options)
    return randomised(net, seed)


def tiny_union(base: Base) -> ControlNetUnionModel:
    shape = base.unet.config
    names = (
        "in_channels", "down_block_types", "block_out_channels", "layers_per_block", "norm_num_groups",
        "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim", "use_linear_projection",
        "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
    )  # fmt: skip
    width = shape.block_out_channels[0]
    net = ControlNetUnionModel(
        **{name: shape[name] for name in names}, conditioning_embedding_out_channels=_EMBEDDING, num_control_type=4,
        num_trans_channel=width, num_trans_head=2, num_proj_channel=width,
    )  # fmt: skip
    return randomised(net)


def theirs(base: Base, kind: Any, net: nn.Module, **options: Any) -> Any:
    """A pipeline of diffusers over the same parts."""
    parts: dict[str, Any] = {
        "vae": base.vae, "text_encoder": base.text_encoder, "tokenizer": base.tokenizer, "unet": base.unet,
        "controlnet": net, "scheduler": pipeline_of(base).scheduler,
    }  # fmt: skip
    if base.text_encoder_2 is None:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        parts |= {"text_encoder_2": base.text_encoder_2, "tokenizer_2": base.tokenizer_2, "add_watermarker": False}
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


OPTIONS: dict[str, Any] = {"negative_prompt": "red", "num_inference_steps": 4, "guidance_scale": 4.0}


def test_without_regions_it_is_the_pipeline_of_diffusers(each_base: Base) -> None:
    net, noise = tiny_controlnet(each_base), start_noise(each_base, [0], 8, 16)
    xl = each_base.text_encoder_2 is not None
    pipe = theirs(each_base, StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline, net)
    expected = steps_of(
        pipe, "a dog", image=picture(), controlnet_conditioning_scale=0.7, control_guidance_end=0.5, latents=noise,
        **OPTIONS,
    )  # fmt: skip
    condition = control_condition(net, [picture()], weight=0.7, span=(0.0, 0.5))
    found = steps_of(pipeline_of(each_base), "a dog", conditions=[condition], latents=noise, **OPTIONS)
    without = steps_of(pipeline_of(each_base), "a dog", latents=noise, **OPTIONS)
    assert len(found) == 4
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, expected))
    assert not torch.allclose(found[0], without[0], rtol=1e-2, atol=1e-2)


def test_a_union_network_is_told_the_kind_of_picture(xl: Base) -> None:
    net, noise = tiny_union(xl), start_noise(xl, [0], 8, 16)
    pipe = theirs(xl, StableDiffusionXLControlNetUnionPipeline, net)
    expected = steps_of(pipe, "a dog", control_image=[picture()], control_mode=[2], latents=noise, **OPTIONS)
    by_kind = [
        steps_of(
            pipeline_of(xl), "a dog", conditions=[control_condition(net, [picture()], control_type=kind)],
            latents=noise, **OPTIONS,
        )
        for kind in (2, 3)
    ]  # fmt: skip
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(by_kind[0], expected))
    assert not torch.allclose(by_kind[0][0], by_kind[1][0], rtol=1e-3, atol=1e-3)


def test_networks_of_means_act_on_the_prompted_half_as_in_diffusers(tiny: Base) -> None:
    net, noise = tiny_controlnet(tiny), start_noise(tiny, [0], 8, 16)
    net.register_to_config(global_pool_conditions=True)
    pipe = theirs(tiny, StableDiffusionControlNetPipeline, net)
    expected = steps_of(pipe, "a dog", image=picture(), latents=noise, **OPTIONS)
    condition = control_condition(net, [picture()])
    found = steps_of(pipeline_of(tiny), "a dog", conditions=[condition], latents=noise, **OPTIONS)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, expected))


def given(base: Base, *, layers: bool = False) -> UNetInput:
    """One step of one picture, without guidance."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, base.topology.layers, 24, base.topology.text_width) if layers else (1, 24, base.topology.text_width)
    latents = torch.randn(1, 4, 8, 16, generator=generator)
    return UNetInput(latents, torch.tensor(500), PromptStates(torch.randn(shape, generator=generator)), 0, 4)


def test_layer_l_reads_what_layer_l_of_the_unet_does(tiny: Base) -> None:
    net, step = tiny_controlnet(tiny), given(tiny, layers=True)
    seen: list[Tensor] = []
    paths = cross_attention_layers(net)
    hooks = [
        net.get_submodule(f"{path}.to_k").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for path in paths
    ]
    control_condition(net, [picture()]).for_unet(step)
    for hook in hooks:
        hook.remove()
    assert paths == tiny.topology.cross_attention[: len(paths)]
    assert len(seen) == len(paths) and all(torch.equal(s, step.text.states[:, i]) for i, s in enumerate(seen))
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_what_conditions_add_is_summed(tiny: Base) -> None:
    net, adapter, step = tiny_controlnet(tiny), tiny_adapter(tiny), given(tiny)
    parts = [control_condition(net, [picture()], weight=weight) for weight in (0.3, 0.4)]
    parts.append(adapter_condition(adapter, [picture()], weight=0.5))
    found = Together(parts).for_unet(step)
    assert set(found) == {
        "down_block_additional_residuals", "mid_block_additional_residual", "down_intrablock_additional_residuals"
    }  # fmt: skip
    whole = control_condition(net, [picture()], weight=0.7).for_unet(step)
    for name, expected in whole.items():
        pairs = zip(found[name], expected) if isinstance(expected, list) else [(found[name], expected)]
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)
    late = control_condition(net, [picture()], span=(0.5, 1.0)).for_unet(step)
    assert late == {} and Together([]).for_unet(step) == {}


@pytest.mark.parametrize("kind", ["adapter", "controlnet"])
def test_a_weight_of_places_acts_there(tiny: Base, kind: str) -> None:
    step, left = given(tiny), torch.zeros(8, 16, dtype=torch.float64)
    left[:, :8] = 1
    weight = place_weight(0.8, torch.stack([1 - left, left]), [0.5])
    assert isinstance(weight, WeightMap)
    net = tiny_adapter(tiny) if kind == "adapter" else tiny_controlnet(tiny)
    make = adapter_condition if kind == "adapter" else control_condition
    found = make(net, [picture()], weight=weight).for_unet(step)
    plain = make(net, [picture()]).for_unet(step)
    for name, value in plain.items():
        pairs = zip(found[name], value) if isinstance(value, list) else [(found[name], value)]
        for residual, unweighed in pairs:
            half = residual.shape[-1] // 2
            assert torch.allclose(residual[..., :half], 0.4 * unweighed[..., :half], atol=1e-6)
            assert torch.allclose(residual[..., half:], 0.8 * unweighed[..., half:], atol=1e-6)
    assert place_weight(0.8, torch.stack([1 - left, left]), [None]) == 0.8
