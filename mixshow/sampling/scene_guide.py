"""A scene's conditions and its pose as one guide of the UNet, each weighed by place."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import T2IAdapter

from mixshow.sampling.conditions import adapter_condition
from mixshow.sampling.controlnet import control_condition
from mixshow.sampling.guide import Guide, Together, Weight, place_weight
from mixshow.sampling.regional_attention import RegionPlan
from mixshow.sampling.regions import Edges
from mixshow.sampling.scene import ConditionReader, Scene


def scene_guide(
    scene: Scene,
    plan: RegionPlan,
    grid: tuple[int, int],
    adapter: T2IAdapter | None,
    readers: Sequence[ConditionReader],
) -> Guide | None:
    """What guides the UNet in a scene beside text; None: nothing.

    Args:
        grid: rows and columns of latents.
        adapter: reads the pose; needed when the scene has one.
        readers: the network of each of the scene's conditions.
    """
    if len(readers) != len(scene.conditions) or (scene.pose is not None and adapter is None):
        raise ValueError("a scene with a pose needs an adapter, and one with conditions a network for each")
    guides: list[Guide] = []
    for i, (condition, reader) in enumerate(zip(scene.conditions, readers)):
        mask = None
        if condition.mask is not None and scene.size is not None:
            mask = condition.mask.coverage(*grid, scene.size, Edges.SOFT)
        weight = place_weight(condition.weight, plan.shares(*grid), _own(scene, i), mask)
        if isinstance(reader, T2IAdapter):
            guides.append(adapter_condition(reader, [condition.picture], weight=weight, span=condition.span))
        else:
            guides.append(
                control_condition(
                    reader, [condition.picture], weight=weight, span=condition.span, control_type=condition.control_type
                )
            )
    if scene.pose is not None and adapter is not None:
        pose = scene.pose
        posed: Weight = place_weight(pose.weight, plan.shares(*grid), _own(scene, len(scene.conditions)))
        guides.append(adapter_condition(adapter, [pose.picture], weight=posed, span=pose.span))
    return Together(guides) if guides else None


def _own(scene: Scene, number: int) -> list[float | None]:
    """The regions' factors on one condition."""
    return [
        region.condition_weights[number] if number < len(region.condition_weights) else None for region in scene.regions
    ]
