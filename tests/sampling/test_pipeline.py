"""The pipeline class: the same sampler as scenes, and without regions the pipeline of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.edlora.concept import attach_concepts
from mixshow.models import Base, save_base
from mixshow.models.embedding_table import with_concept_tokens
from mixshow.sampling.compose import compose
from mixshow.sampling.generate import start_noise
from mixshow.sampling.isolation import Isolation
from mixshow.sampling.pipeline import RegionalPipeline
from mixshow.sampling.precision import Precision
from mixshow.sampling.regions import Edges, PixelBox, Region
from mixshow.sampling.scene import Scene
from tests.tiny import tiny_base, tiny_concept

SIZE = (128, 64)
SIDES = {"width": SIZE[0], "height": SIZE[1]}
REGIONS = (
    Region(PixelBox(0, 0, 64, 64), "a boy", "blue", base_ratio=0.2),
    Region(PixelBox(40, 0, 128, 64), "a girl", "red", guidance=5.0, span=(0.0, 0.5)),
)


def pipeline_of(base: Base) -> RegionalPipeline:
    pipe = RegionalPipeline.from_base(base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def steps_of(pipe: Any, prompt: str, **options: Any) -> list[Tensor]:
    """Latents after every step."""
    found: list[Tensor] = []

    def keep(_: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found.append(tensors["latents"].clone())
        return tensors

    pipe(prompt, callback_on_step_end=keep, output_type="latent", **SIDES, **options)
    return found


@pytest.mark.parametrize("edges", ["hard", "soft"])
def test_regions_are_those_of_scenes(each_base: Base, edges: str) -> None:
    pipe = pipeline_of(each_base)
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    isolation = Isolation(0.5) if edges == "soft" else None
    scene = Scene(
        "a dog", SIZE, "hat", REGIONS, edges=Edges(edges), isolation=isolation, background_prompt="a toy",
        schedule=((0.5, 0.5),), steps=3, guidance=4.0, precision=Precision.FP32,
    )  # fmt: skip
    expected: list[Tensor] = []
    compose(each_base, scene, seeds=[3], callback=lambda step: expected.append(step["latents"].clone()))
    found = steps_of(
        pipe, "a dog", regions=REGIONS, isolation=isolation, negative_prompt="hat", background_prompt="a toy",
        edges=edges, region_schedule=((0.5, 0.5),), num_inference_steps=3, guidance_scale=4.0,
        latents=start_noise(each_base, [3], 8, 16),
    )  # fmt: skip
    assert len(found) == 3 and all(torch.equal(a, b) for a, b in zip(found, expected))


def test_without_regions_it_is_the_pipeline_of_diffusers(each_base: Base, tmp_path: Path) -> None:
    save_base(each_base, tmp_path / "base")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "base")
    ours = RegionalPipeline.from_pretrained(tmp_path / "base")
    assert type(ours.scheduler) is type(theirs.scheduler)
    options = {"negative_prompt": "red", "num_inference_steps": 3, "guidance_scale": 4.0, "num_images_per_prompt": 2}
    pairs = []
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(5)
        pairs.append(steps_of(pipe, "a dog on the beach", generator=generator, **options))
    assert len(pairs[0]) == 3
    for ours_at, theirs_at in zip(*pairs):
        assert torch.allclose(ours_at, theirs_at, rtol=1e-4, atol=1e-5)


def test_a_fused_folder_is_read_layer_by_layer(tiny: Base, tmp_path: Path) -> None:
    concept = tiny_concept(tiny, "pip")
    known, attachment = with_concept_tokens(tiny, concept.embeddings)
    with attachment:
        save_base(known, tmp_path / "fused")
    pipe = RegionalPipeline.from_pretrained(tmp_path / "fused")
    pipe.set_progress_bar_config(disable=True)
    noise = start_noise(tiny, [0], 8, 16)
    options: dict[str, Any] = {"num_inference_steps": 2, "latents": noise}
    found = steps_of(pipe, "a photo of <pip1> <pip2>", **options)
    bare = {token: concept.embeddings[token] for token in concept.embeddings}
    tuned, attached = attach_concepts(tiny, [type(concept)(bare, {}, concept.metadata)])
    with attached:
        expected = steps_of(pipeline_of(tuned), "a photo of <pip1> <pip2>", **options)
    assert torch.allclose(found[-1], expected[-1], rtol=1e-4, atol=1e-5)
    with pytest.raises(MixshowError, match="<luma1> is no concept token of this model; known: <pip1>, <pip2>"):
        pipe("a dog", [{"box": [0, 0, 0.5, 1], "prompt": "<luma1>"}], **SIDES)
    pipe.save_pretrained(tmp_path / "again")
    assert RegionalPipeline.from_pretrained(tmp_path / "again").base.vocabulary == pipe.base.vocabulary


def test_the_unet_is_left_as_it_was_also_after_an_error(tiny: Base) -> None:
    pipe, before = pipeline_of(tiny), dict(tiny.unet.attn_processors)

    def fail(*_: Any) -> None:
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        pipe("a dog", REGIONS, num_inference_steps=2, callback_on_step_end=fail, **SIDES)
    after = tiny.unet.attn_processors
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert not any(module._forward_pre_hooks for module in tiny.unet.modules())


def test_callbacks_change_latents_and_interrupt(tiny: Base) -> None:
    pipe, seen = pipeline_of(tiny), []

    def blacken(pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(step)
        pipe._interrupt = step == 1
        return {"latents": torch.zeros_like(tensors["latents"])}

    options: dict[str, Any] = {"num_inference_steps": 5, "output_type": "latent"}
    found = pipe("a dog", REGIONS, callback_on_step_end=blacken, **options, **SIDES).images
    assert seen == [0, 1] and not found.any()


def test_models_wait_on_the_processor_until_they_are_needed(tiny: Base, tmp_path: Path) -> None:
    base = tiny_base(tmp_path)  # its own: accelerate's hooks leave traces
    options: dict[str, Any] = {"num_inference_steps": 2, "latents": torch.ones(1, 4, 8, 16), **SIDES}
    expected = pipeline_of(tiny)("a dog", REGIONS, **options)
    pipe = pipeline_of(base)
    pipe.enable_model_cpu_offload(device="cpu:0")
    found = pipe("a dog", REGIONS, **options)
    assert base.device == torch.device("cpu:0")
    assert found.images[0].tobytes() == expected.images[0].tobytes()


def test_areas_come_as_numbers_and_pictures(tiny: Base) -> None:
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (64, 0, 128, 64))
    pipe = pipeline_of(tiny)
    options: dict[str, Any] = {"num_inference_steps": 1, "latents": torch.ones(1, 4, 8, 16), "edges": "soft"}
    found = [
        steps_of(pipe, "a dog", regions=[{**area, "prompt": "a boy"}], negative_prompt="red", **options)[-1]
        for area in (
            {"box": [0.5, 0, 1, 1]}, {"box": [64, 0, 128, 64]}, {"mask": mask},
            {"polygon": [[64, 0], [128, 0], [128, 64], [64, 64]]}, {"area": PixelBox(64, 0, 128, 64)},
        )
    ]  # fmt: skip
    assert all(torch.allclose(found[0], other, atol=1e-5) for other in found[1:])
    for regions, message in (
        ([{"prompt": "a boy"}], "expected one of area, box, polygon, mask for each, found none"),
        ([{"box": [0, 0, 1, 1]}], "expected a prompt and fields of Region"),
        ([{"box": [0, 0, 200, 64], "prompt": "a boy"}], "is not inside the picture"),
        ([{"box": [0, 0, 1, 1], "prompt": "a boy", "seed_offset": 1}], "seed_offset"),
    ):
        with pytest.raises(MixshowError, match=message):
            pipe("a dog", regions, **SIDES)
    with pytest.raises(MixshowError, match="width: expected a multiple of 64"):
        pipe("a dog", width=100, height=64)


@pytest.mark.slow
def test_a_compiled_unet_makes_the_same_picture(tiny: Base) -> None:
    options: dict[str, Any] = {"regions": REGIONS, "num_inference_steps": 3, "latents": torch.ones(1, 4, 8, 16)}
    expected = steps_of(pipeline_of(tiny), "a dog", **options)
    pipe = pipeline_of(tiny)
    pipe.unet = torch.compile(pipe.unet, backend="eager")  # what inductor makes of it is inductor's
    for _ in range(2):
        assert torch.allclose(steps_of(pipe, "a dog", **options)[-1], expected[-1], rtol=1e-4, atol=1e-5)
