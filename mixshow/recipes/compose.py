"""One scene's options -> its pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from mixshow.config.load import load, to_plain
from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.core.progress import log, progress_bar
from mixshow.core.version import __version__
from mixshow.edlora.concept import Concept, attach_concepts
from mixshow.formats import read_concept
from mixshow.models import Base, load_base
from mixshow.models.base import check_source
from mixshow.recipes.scene import check_scene, read_scene
from mixshow.sampling.compose import compose
from mixshow.sampling.conditions import check_adapter_source, load_adapter
from mixshow.sampling.pictures import picture_grid, read_about, save_picture
from mixshow.sampling.precision import resolve
from mixshow.sampling.scene import Scene

_GRID_COLUMNS = 4


def compose_file(path: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Make the pictures of a scene's YAML file, or a picture again from the scene in its metadata.

    A picture that is made again is written to `NAME_again.png` beside it, unless `output` is given, and is the same
    to the last bit on the same machine.

    Returns:
        The files written.

    Raises:
        OptionsError: everything that is wrong with the scene.
    """
    if path.suffix.lower() != ".png":
        return compose_options(load(SceneOptions, path, overrides), str(path))
    about = read_about(path)
    given = {text.split("=")[0] for text in overrides}
    contents = {**about.get("scene", {}), "output": str(path.with_name(f"{path.stem}_again.png"))}
    options = load(SceneOptions, path, overrides, values=contents)
    return compose_options(options, str(path), only=None if "seeds" in given else about.get("seed"))


def compose_options(options: SceneOptions, source: str, *, only: int | None = None) -> list[Path]:
    """Make the pictures of a scene and write each as soon as it is done.

    Args:
        source: where the options came from, for messages.
        only: keep only this seed's picture (the others of its batch are made all the same: the size of a batch moves
            the last bits).

    Returns:
        The files written.

    Raises:
        OptionsError: everything that is wrong with the scene.
    """
    problems: list[str] = []
    scene, resolved = read_scene(options, problems)
    concepts = _concepts(options, problems)
    for check, name, place in _places(options):
        try:
            check(place)
        except MixshowError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise OptionsError(source, problems)

    base = load_base(options.model, vae=options.vae, device=_device(options.device))
    base, attachment = attach_concepts(base, concepts, strengths=options.strengths)
    with attachment:
        check_scene(scene, base, source)
        scene = dataclasses.replace(scene, precision=resolve(scene.precision, base.device))
        resolved = dataclasses.replace(resolved, precision=scene.precision.value)
        several = only is None and len(options.seeds) > 1
        made: list[tuple[int, Image.Image, Path]] = []
        for batch, images in _batches(base, scene, options):
            about = _about(dataclasses.replace(resolved, seeds=batch, batch_size=len(batch)), base)
            for seed, image in zip(batch, images):
                if only in (None, seed):
                    path = _with_ending(options.output, f"_seed{seed}") if several else options.output
                    save_picture(image, path, {**about, "seed": seed})
                    made.append((seed, image, path))
    paths = [path for _, _, path in made]
    if options.grid and several:
        grid = picture_grid([image for _, image, _ in made], _GRID_COLUMNS, [f"seed {seed}" for seed, _, _ in made])
        paths.append(_with_ending(options.output, "_grid"))
        save_picture(grid, paths[-1])
    for path in paths:
        log.info("%s", path)
    return paths


def _concepts(options: SceneOptions, problems: list[str]) -> list[Concept]:
    concepts = []
    for i, path in enumerate(options.concepts):
        try:
            concepts.append(read_concept(path))
        except MixshowError as error:
            problems.append(f"concepts[{i}]: {error}")
    return concepts


def _places(options: SceneOptions) -> Iterator[tuple[Callable[[str], None], str, str]]:
    """What the models are to be loaded from, with what checks it and its name in the options."""
    yield check_source, "model", options.model
    if options.vae is not None:
        yield check_source, "vae", options.vae
    if options.pose is not None:
        yield check_adapter_source, "pose.adapter", options.pose.adapter


def _batches(base: Base, scene: Scene, options: SceneOptions) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Batches of seeds with their pictures, each as soon as it is done."""
    adapter = load_adapter(options.pose.adapter, base) if options.pose is not None else None
    with progress_bar(len(options.seeds), "pictures") as bar:
        for start in range(0, len(options.seeds), options.batch_size):
            batch = options.seeds[start : start + options.batch_size]

            def show(step: dict[str, Any], done: int = start, pictures: int = len(batch)) -> None:
                bar.update(done + pictures * (step["step"] + 1) / step["steps"] - bar.n)

            yield (
                batch,
                compose(base, scene, seeds=batch, adapter=adapter, batch_size=len(batch), callback=show),
            )


def _about(options: SceneOptions, base: Base) -> dict[str, Any]:
    """What a picture says about how it was made."""
    topology = base.topology
    native = topology.sample_size * topology.latent_factor
    scene = to_plain(dataclasses.replace(options, size=options.size or (native, native)))
    del scene["output"], scene["grid"]
    return {
        "version": __version__,
        "scene": scene,
        "topology": topology.fingerprint(),
        "made_on": str(base.device),
        "libraries": {library.__name__: library.__version__ for library in (torch, diffusers, transformers)},
    }


def _with_ending(path: Path, ending: str) -> Path:
    return path.with_name(path.stem + ending + path.suffix)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
        return device
    except (
        RuntimeError,
        AssertionError,
        NotImplementedError,
    ) as error:  # one kind per way of not being there
        first_line = str(error).splitlines()[0]
        raise MixshowError(
            f"device: expected 'auto', 'cpu' or an accelerator of this machine, found '{name}' ({first_line})"
        ) from error
