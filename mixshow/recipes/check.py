"""Everything about a scene that can be checked before its model is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.edlora.concept import Concept
from mixshow.formats import read_concept
from mixshow.models.base import source_problem
from mixshow.models.device import device_named
from mixshow.models.glance import glance_at
from mixshow.models.schedule import scheduler_class
from mixshow.recipes.conditions import missing_readers, unfit_readers
from mixshow.recipes.networks import missing_networks
from mixshow.recipes.outputs import files_read, files_written, overwritten
from mixshow.recipes.scene import read_scene, scene_problems
from mixshow.sampling.conditions import adapter_problem
from mixshow.sampling.controlnet import controlnet_problem
from mixshow.sampling.detect import detector_problem
from mixshow.sampling.scene import Scene


@dataclasses.dataclass(frozen=True)
class CheckedScene:
    """A scene in which nothing was found to be wrong.

    Attributes:
        options: hold all of it: they name no files of regions, poses or conditions any more.
        concepts: those that are attached to its model.
    """

    scene: Scene
    options: SceneOptions
    concepts: list[Concept]


def check_options(options: SceneOptions, source: str, *, only: int | None = None) -> CheckedScene:
    """Read what the options name, and look for all that is wrong; loads no weights of models.

    Whether concepts and networks fit the model's layers shows when it is loaded.

    Args:
        source: where the options came from, for messages.
        only: the one seed whose picture is kept; None: all.

    Raises:
        OptionsError: everything that is wrong with the scene.
    """
    problems = overwritten(files_written(options, only), files_read(options))
    problems += [*_missing_models(options), *missing_networks(options), *missing_readers(options)]
    found = None
    if not problems:
        with _noting(problems):
            found = glance_at(options.model, vae=options.vae)
            problems += unfit_readers(options, found.unet)
    concepts = []
    for i, path in enumerate(options.concepts):
        with _noting(problems, f"concepts[{i}]: "):
            concepts.append(read_concept(path))
            if found is not None:
                found = dataclasses.replace(
                    found, vocabulary=found.vocabulary.extended(concepts[-1].embeddings, layers=0, first_id=0)
                )
    known = None if problems or found is None else found.vocabulary.concepts
    scene, resolved = read_scene(options, problems, known, None if found is None else found.size_multiple)
    with _noting(problems):
        device_named(options.device)
    with _noting(problems):
        kind = scheduler_class(options.scheduler, options.scheduler_options)
        passes = {name: getattr(options, name) for name in ("image", "hires", "detail")}
        asking = [name for name, given in passes.items() if given is not None]
        if asking and not hasattr(kind, "add_noise"):
            raise MixshowError(
                f"scheduler: expected one that can begin from a picture, for {' and '.join(asking)}, "
                f"found {kind.__name__}"
            )
    if found is not None and not problems:
        problems += scene_problems(scene, found.size_multiple, found.vocabulary, options.model)
    if problems:
        raise OptionsError(source, problems)
    return CheckedScene(scene, resolved, concepts)


@contextlib.contextmanager
def _noting(problems: list[str], where: str = "") -> Iterator[None]:
    """Add what is wrong to `problems` instead of raising it."""
    try:
        yield
    except MixshowError as error:
        problems.append(f"{where}{error}")


def _missing_models(options: SceneOptions) -> list[str]:
    found = {"model": source_problem(options.model)}
    if options.vae is not None:
        found["vae"] = source_problem(options.vae)
    if options.pose is not None:
        if options.pose.controlnet is None:
            found["pose.adapter"] = adapter_problem(options.pose.adapter)
        else:
            found["pose.controlnet"] = controlnet_problem(options.pose.controlnet)
        if options.pose.photo is not None:
            found["pose"] = detector_problem(options.pose.detector, options.pose.detector_model)
    return [f"{name}: {problem}" for name, problem in found.items() if problem]
