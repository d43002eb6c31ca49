"""Boxes of regions from the people of a pose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from mixshow.config.region import RegionOptions
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.core.progress import log
from mixshow.recipes.pose import ReadPose
from mixshow.sampling.people_boxes import boxes_around

Box = tuple[float, float, float, float]


def with_boxes_from_pose(
    options: SceneOptions, pose: ReadPose | None, problems: list[str]
) -> tuple[SceneOptions, frozenset[int]]:
    """Options in which regions that stand around people have boxes.

    Without people, which are wrong or not looked for yet, these regions get columns, so that the rest can be checked.

    Args:
        pose: None: there is something wrong with it, or none.
        problems: what is wrong is added here; the result must then not be used.

    Returns:
        The options, and the numbers of the regions that have such a column, which says nothing of their place.
    """
    asking = [i for i, region in enumerate(options.regions) if _from_pose(region, options)]
    if pose is not None and pose.people and len(pose.people) > len(options.regions) > 0:
        log.info(
            "pose: %d people for %d regions; the others have no region of their own",
            len(pose.people),
            len(options.regions),
        )
    if not asking or options.size is None:
        return options, frozenset()
    boxes: list[Box] = []
    if pose is not None and pose.people:
        try:
            everyone = boxes_around(pose.people, options.size, pose.margins)
            chosen = _chosen([options.regions[i] for i in asking], asking, pose.names)
            boxes = [everyone[person] for person in chosen]
        except MixshowError as error:
            problems.append(str(error))
    placed = bool(boxes)
    if not placed:
        width, height = options.size
        borders = [width * i // len(asking) for i in range(len(asking) + 1)]
        boxes = [(borders[i], 0, borders[i + 1], height) for i in range(len(asking))]
    regions = list(options.regions)
    for i, box in zip(asking, boxes, strict=True):
        regions[i] = dataclasses.replace(regions[i], person=None, box=box)
    options = dataclasses.replace(options, boxes=None, regions=regions, edges=options.edges or "soft")
    return options, frozenset() if placed else frozenset(asking)


def _from_pose(region: RegionOptions, options: SceneOptions) -> bool:
    return region.person is not None or (options.boxes is not None and region.shape is None)


def _chosen(regions: Sequence[RegionOptions], numbers: Sequence[int], names: Sequence[str | None]) -> list[int]:
    """For each region its person: the one that it or its concept names, the others in order."""
    named = {name: i for i, name in enumerate(names) if name is not None}
    chosen: dict[int, int] = {}
    for region, number in zip(regions, numbers, strict=True):
        if isinstance(region.person, int):
            if region.person > len(names):
                raise MixshowError(
                    f"regions[{number}].person: expected one of the pose's {len(names)} people, found {region.person}"
                )
            chosen[number] = region.person - 1
        elif region.person is not None:
            if region.person not in named:
                raise MixshowError(
                    f"regions[{number}].person: the pose has no '{region.person}'"
                    f"{did_you_mean(region.person, named) or '; its people have no names'}"
                )
            chosen[number] = named[region.person]
        elif region.concept in named:
            chosen[number] = named[region.concept]
    left = [i for i in range(len(names)) if i not in chosen.values()]
    waiting = [number for number in numbers if number not in chosen]
    if len(left) < len(waiting):
        raise MixshowError(
            f"boxes: expected a person for each of {len(regions)} regions, found {len(names)} in the pose"
            + (f", {len(left)} of them not taken by name or number" if chosen else "")
        )
    chosen |= dict(zip(waiting, left))
    return [chosen[number] for number in numbers]
