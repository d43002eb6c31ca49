"""A scene's conditions and its pose as one guide of the UNet, each weighed by place."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import T2IAdapter

from mixshow.sampling.conditions import adapter_condition
from mixshow.sampling.controlnet import control_condition
from mixshow.sampling.guide import Guide, Together, Weight, place_weight
from mixshow.sampling.regional_attention import RegionPlan
from mixshow.sampling.regions import Edges
from mixshow.sampling.scene import ConditionPicture, ConditionReader, Scene


def scene_guide(
    scene: Scene,
    plan: RegionPlan,
    grid: tuple[int, int],
    adapter: ConditionReader | None,
    readers: Sequence[ConditionReader],
) -> Guide | None:
    """What guides the UNet in a scene beside text; None: nothing.

    Args:
        grid: rows and columns of latents.
        adapter: reads the pose; needed when the scene has one.
        readers: the network of each of the scene's conditions.
    """
    pairs = list(zip(scene.conditions, readers, strict=True))
    if scene.pose is not None:
        if adapter is None:
            raise ValueError("a scene with a pose needs an adapter")
        pose = scene.pose
        pairs.append((ConditionPicture(pose.picture, pose.weight, pose.span, None, pose.control_type), adapter))
    guides = [_guide(scene, plan, grid, number, *pair) for number, pair in enumerate(pairs) if pair[0].weight != 0]
    return Together(guides) if guides else None


def _guide(
    scene: Scene,
    plan: RegionPlan,
    grid: tuple[int, int],
    number: int,
    condition: ConditionPicture,
    reader: ConditionReader,
) -> Guide:
    mask = None
    if condition.mask is not None and scene.size is not None:
        mask = condition.mask.coverage(*grid, scene.size, Edges.SOFT)
    own = [region.condition_weights[number : number + 1] for region in scene.regions]
    weight: Weight = condition.weight
    if mask is not None or any(own):
        weight = place_weight(condition.weight, plan.shares(*grid), [each[0] if each else None for each in own], mask)
    if isinstance(reader, T2IAdapter):
        return adapter_condition(reader, [condition.picture], weight=weight, span=condition.span)
    return control_condition(
        reader, [condition.picture], weight=weight, span=condition.span, control_type=condition.control_type
    )
