"""A scene's options and the files they name -> the scene as a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixshow.config.scene import PoseOptions, SceneOptions
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.models import Base, ConceptVocabulary, PromptReading
from mixshow.models.prompt_weights import weights_problem
from mixshow.models.prompts import clip_skip_problem
from mixshow.recipes.conditions import read_conditions
from mixshow.recipes.passes import second_pass, start_picture
from mixshow.recipes.regions import read_regions, with_common_negative
from mixshow.sampling.generate import side_problem
from mixshow.sampling.openpose import (
    anyone_inside,
    fit_people,
    fit_picture,
    person_of,
    read_people,
    read_picture,
)
from mixshow.sampling.pictures import decoded_picture, encoded_picture
from mixshow.sampling.pose import draw_openpose
from mixshow.sampling.precision import Precision
from mixshow.sampling.regions import Edges
from mixshow.sampling.scene import PoseGuide, Scene


def read_scene(
    options: SceneOptions,
    problems: list[str],
    concepts: Mapping[str, str] | None = None,
    multiple: int | None = None,
) -> tuple[Scene, SceneOptions]:
    """Read poses, conditions, regions and pictures; nothing slow is loaded.

    Args:
        concepts: see `read_regions`.
        multiple: what the model's pictures' sides are multiples of, for the size of a second pass; None: not known.
        problems: what is wrong is added here; the result must then not be used.

    Returns:
        The scene, and options that hold all of it: they name no files of those any more.
    """
    regions, options = read_regions(options, problems, concepts)
    guide = None
    if options.size is not None:
        try:
            guide, options = _pose(options, options.size)
        except MixshowError as error:
            problems.append(f"pose: {error}")
    conditions, options = read_conditions(options, problems)
    scene = Scene(
        prompt=options.prompt,
        size=options.size,
        negative_prompt=with_common_negative(options.negative_prompt, options.common_negative),
        regions=tuple(regions),
        pose=guide,
        conditions=conditions,
        edges=Edges(options.edges or Edges.HARD),
        base_prompt=options.base_prompt,
        background_prompt=options.background_prompt,
        schedule=tuple(options.region_schedule),
        steps=options.steps,
        guidance=options.guidance,
        scheduler=options.scheduler,
        scheduler_options=options.scheduler_options,
        precision=Precision(options.precision),
        rescale=options.cfg_rescale,
        reading=PromptReading(options.prompt_weights, options.long_prompts == "windows", options.clip_skip),
    )
    if options.hires is not None and options.size is not None:
        scene = dataclasses.replace(scene, second=second_pass(options.hires, options.size, multiple or 1))
    if options.image is not None and not problems:
        try:
            start, image = start_picture(options.image, scene, options.regions)
            scene, options = dataclasses.replace(scene, start=start), dataclasses.replace(options, image=image)
        except MixshowError as error:
            problems.append(f"image.{error}")
    return scene, options


def check_scene(scene: Scene, base: Base, source: str) -> None:
    """Whether a base can make a scene.

    Raises:
        OptionsError: sizes that do not fit, prompts it cannot read and layers it does not have, together.
    """
    problems = scene_problems(scene, base.topology.size_multiple, base.vocabulary, base.source)
    if problem := clip_skip_problem(base, scene.reading.clip_skip):
        problems.append(problem)
    if problems:
        raise OptionsError(source, problems)


def scene_problems(scene: Scene, multiple: int | None, vocabulary: ConceptVocabulary, model: str) -> list[str]:
    """Sizes that do not fit a base, concept tokens it does not know, and brackets without partners in prompts.

    Args:
        multiple: what sides must be multiples of; None: not known.
        model: the base's name, for messages.
    """
    names = ("size, width", "size, height")
    sides = zip(names, scene.size or ()) if multiple is not None else ()
    problems = [side_problem(name, side, multiple or 1) for name, side in sides]
    if scene.second is not None and multiple is not None:
        names = ("hires.size, width", "hires.size, height")
        problems += [side_problem(name, side, multiple) for name, side in zip(names, scene.second.size)]
    known = vocabulary.tokens
    unknown = dict.fromkeys(word for prompt in scene.prompts for word in vocabulary.unknown_in(prompt))
    listed = ", ".join(known) if known else "none; fuse concepts into the model, or name concept files in 'concepts'"
    problems += [f"{word} is no concept token of model '{model}'; known: {listed}" for word in unknown]
    if scene.reading.weights:
        problems += [weights_problem(prompt) for prompt in dict.fromkeys(scene.prompts)]
    return [problem for problem in problems if problem]


def _pose(options: SceneOptions, size: tuple[int, int]) -> tuple[PoseGuide | None, SceneOptions]:
    """The pose as a picture of the scene's size, and options that hold it without a file."""
    pose = options.pose
    if pose is None:
        return None, options
    if pose.image is not None or pose.png is not None:
        picture = fit_picture(read_picture(pose.image) if pose.image else decoded_picture(pose.png or ""), size)
        if picture.getbbox() is None:
            raise MixshowError(f"{pose.image or 'png'}: expected a picture of at least one person, found only black")
        kept: dict[str, Any] = {"png": encoded_picture(picture)}
    else:
        people, canvas = read_people(pose.json) if pose.json is not None else _people(pose)
        people = fit_people(people, canvas, size)
        if not anyone_inside(people, size):
            raise MixshowError(
                f"{pose.json or 'people'}: expected at least one person with visible key points inside the picture of "
                f"{size[0]}x{size[1]} pixels, found none"
            )
        picture = draw_openpose(people, size)
        kept = {"people": [person.tolist() for person in people]}
    bare = dataclasses.replace(pose, image=None, json=None, people=None, png=None)
    return PoseGuide(picture, pose.weight, pose.span), dataclasses.replace(
        options, pose=dataclasses.replace(bare, **kept)
    )


def _people(pose: PoseOptions) -> tuple[list[np.ndarray], tuple[int, int] | None]:
    """People given in the options, and their canvas: (1, 1) for fractions, None for pixels."""
    people = []
    for i, points in enumerate(pose.people or []):
        try:
            people.append(person_of(points))
        except ValueError as error:
            raise MixshowError(f"people[{i}]: {error}") from error
    return people, (1, 1) if max(person[:, :2].max() for person in people) <= 1 else None
