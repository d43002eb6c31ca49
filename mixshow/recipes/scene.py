"""A scene's options and the files they name -> the scene as a value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mixshow.config.isolation import IsolateOptions
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.models import Base, ConceptVocabulary, PromptReading
from mixshow.models.prompt_weights import weights_problem
from mixshow.models.prompts import clip_skip_problem
from mixshow.models.vocabulary import concept_words
from mixshow.recipes.conditions import read_conditions
from mixshow.recipes.passes import detail_pass, second_pass, start_picture
from mixshow.recipes.pose import read_pose
from mixshow.recipes.pose_boxes import with_boxes_from_pose
from mixshow.recipes.regions import read_regions, with_common_negative
from mixshow.sampling.generate import side_problem
from mixshow.sampling.guard import region_tokens
from mixshow.sampling.isolation import Isolation
from mixshow.sampling.precision import Precision
from mixshow.sampling.regions import Edges
from mixshow.sampling.scene import Scene
from mixshow.sampling.sought import Sought


def read_scene(
    options: SceneOptions,
    problems: list[str],
    concepts: Mapping[str, str] | None = None,
    multiple: int | None = None,
) -> tuple[Scene, SceneOptions]:
    """Read poses, conditions, regions and pictures; nothing slow is loaded, so a pose from a photograph is left out.

    Args:
        concepts: see `read_regions`.
        multiple: what the model's pictures' sides are multiples of, for the size of a second pass; None: not known.
        problems: what is wrong is added here; the result must then not be used.

    Returns:
        The scene, and options that hold all of it: they name no files of those any more.
    """
    pose = None
    if options.size is not None and options.pose is not None:
        try:
            pose = read_pose(options.pose, options.size)
            options = dataclasses.replace(options, pose=pose.options)
        except MixshowError as error:
            problems.append(f"pose: {error}")
    options, unplaced = with_boxes_from_pose(options, pose, problems)
    regions, options = read_regions(options, problems, concepts, unplaced)
    conditions, options = read_conditions(options, problems)
    scene = Scene(
        prompt=options.prompt,
        size=options.size,
        negative_prompt=with_common_negative(options.negative_prompt, options.common_negative),
        regions=tuple(regions),
        pose=None if pose is None else pose.guide,
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
        isolation=_isolation(options.isolate),
        guard=options.guard,
        rescale=options.cfg_rescale,
        reading=PromptReading(options.prompt_weights, options.long_prompts == "windows", options.clip_skip),
    )
    if options.hires is not None and options.size is not None:
        scene = dataclasses.replace(scene, second=second_pass(options.hires, options.size, multiple))
    if options.detail is not None and not problems:
        try:
            guided = options.pose is not None or bool(scene.conditions)  # a photograph's pose is not read yet
            scene = dataclasses.replace(scene, detail=detail_pass(options.detail, options.regions, guided=guided))
        except MixshowError as error:
            problems.append(f"detail.{error}")
    if options.image is not None and not problems:
        try:
            rounded = multiple is not None or options.hires is None or options.hires.size is not None
            start, image = start_picture(options.image, scene, options.regions, rounded=rounded)
            scene, options = dataclasses.replace(scene, start=start), dataclasses.replace(options, image=image)
        except MixshowError as error:
            problems.append(f"image.{error}")
    return scene, options


def _isolation(options: IsolateOptions | None) -> Isolation | None:
    return None if options is None else Isolation(options.strength, (options.start, options.end))


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
    problems += _unfindable(scene, vocabulary)
    if scene.reading.weights:
        problems += [weights_problem(prompt) for prompt in dict.fromkeys(scene.prompts)]
    return [problem for problem in problems if problem]


def _unfindable(scene: Scene, vocabulary: ConceptVocabulary) -> list[str]:
    """Regions that are to be found from attention to tokens which the picture does not read."""
    read = concept_words(scene.prompt if scene.background_prompt is None else scene.background_prompt)
    found = []
    for number, region in enumerate(scene.regions):
        if isinstance(region.area, Sought):
            tokens = region_tokens(region, vocabulary)
            missing = [token for token in tokens if token not in read]
            if not tokens:
                found.append(f"regions[{number}].from: expected a concept in its prompt, to find it by; found none")
            elif missing:
                found.append(
                    f"regions[{number}].from: expected {' '.join(missing)} in the scene's prompt (or its "
                    "background_prompt), which the first steps follow; found none"
                )
    return found
