"""One scene's options -> its pictures."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from mixshow.config.load import load, to_plain
from mixshow.config.scene import SceneOptions
from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.core.progress import log, progress_bar
from mixshow.core.version import __version__
from mixshow.edlora.concept import attach_concepts
from mixshow.models import Base, load_base
from mixshow.models.device import device_named
from mixshow.models.glance import glance_at
from mixshow.recipes.check import check_options
from mixshow.recipes.conditions import load_pose_reader, load_readers
from mixshow.recipes.networks import put_networks_on
from mixshow.recipes.outputs import check_files, check_output, files_read, grid_of, picture_of, sheet_of, with_ending
from mixshow.recipes.pose import with_photo_read
from mixshow.recipes.region_networks import region_networks
from mixshow.recipes.running import running_previews
from mixshow.recipes.scene import check_scene, read_scene
from mixshow.recipes.sheet import write_sheet
from mixshow.sampling.compose import compose
from mixshow.sampling.directed import DirectedNetwork
from mixshow.sampling.pictures import picture_grid, read_about, save_picture
from mixshow.sampling.precision import resolve
from mixshow.sampling.preview import draw_preview
from mixshow.sampling.scene import Scene

_GRID_COLUMNS = 4


@dataclasses.dataclass(frozen=True)
class Composed:
    """What was written.

    Attributes:
        pictures: one file per seed.
        others: grids and sheets.
        base: that made them, as it was before.
    """

    pictures: list[Path]
    others: list[Path]
    base: Base

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [*self.pictures, *self.others]


def compose_file(path: Path, overrides: Sequence[str] = ()) -> list[Path]:
    """Make the pictures of a scene's YAML file, or a picture again from the scene in its metadata.

    A picture that is made again is written to `NAME_again.png` beside it, unless `output` is given, and is the same
    to the last bit on the same machine.

    Returns:
        The files written.

    Raises:
        OptionsError: everything that is wrong with the scene.
    """
    return compose_files([path], overrides)


def compose_files(paths: Sequence[Path], overrides: Sequence[str] = (), *, sheet: Path | None = None) -> list[Path]:
    """Make the pictures of several scenes, one after another; all are checked before the first one's model is loaded.

    Args:
        overrides: for each of them.
        sheet: HTML to write with all pictures.

    Returns:
        The files written.

    Raises:
        OptionsError: everything that is wrong with a scene.
        MixshowError: scenes would write the same file, or one that another of them reads.
    """
    scenes = [(path, *read_scene_file(path, overrides)) for path in paths]
    check_files(scenes, sheet)
    if len(scenes) > 1:
        for path, options, only in scenes:
            check_options(options, str(path), only=only)
    pictures: list[Path] = []
    others: list[Path] = []
    loaded: tuple[object, Base] | None = None
    for path, options, only in scenes:
        wanted = (options.model, options.vae, options.device)
        base = loaded[1] if loaded is not None and loaded[0] == wanted else None
        composed = compose_options(options, str(path), only=only, base=base)
        pictures, others, loaded = [*pictures, *composed.pictures], [*others, *composed.others], (wanted, composed.base)
    if sheet is not None:
        write_sheet(sheet, pictures)
        log.info("%s", sheet)
        others.append(sheet)
    return [*pictures, *others]


def preview_file(path: Path, overrides: Sequence[str] = ()) -> Path:
    """Draw the regions and the pose of a scene, without its model, to `NAME_preview.png` beside its output.

    Raises:
        OptionsError: everything that is wrong with them.
    """
    options, _ = read_scene_file(path, overrides)
    options = with_photo_read(options)
    problems: list[str] = []
    scene, _ = read_scene(options, problems, multiple=_multiple_at_hand(options))
    if scene.size is None:
        problems.append("expected a scene with a size and regions or a pose, found nothing to preview")
    if problems:
        raise OptionsError(str(path), problems)
    preview = with_ending(options.output, "_preview")
    check_output(preview, {str(path): path, **files_read(options)}, "preview")
    save_picture(draw_preview(scene), preview)
    log.info("%s", preview)
    return preview


def _multiple_at_hand(options: SceneOptions) -> int | None:
    """What the model's sides are multiples of, where a second pass asks for it and the model is there."""
    with contextlib.suppress(MixshowError):
        return glance_at(options.model, vae=options.vae).size_multiple if options.hires is not None else None
    return None


def read_scene_file(path: Path, overrides: Sequence[str] = ()) -> tuple[SceneOptions, int | None]:
    """The options of a scene's YAML file or of a picture, and the one seed that is asked for (None: all).

    Raises:
        OptionsError: everything that is wrong with them.
    """
    if path.suffix.lower() != ".png":
        options = load(SceneOptions, path, overrides)
        check_files([(path, options, None)])
        return options, None
    about = read_about(path)
    given = {text.split("=")[0] for text in overrides}
    contents = {**about.get("scene", {}), "output": str(path.with_name(f"{path.stem}_again.png"))}
    options = load(SceneOptions, path, overrides, values=contents)
    only = None if "seeds" in given else about.get("seed")
    check_files([(path, options, only)])
    return options, only


def compose_options(
    options: SceneOptions, source: str, *, only: int | None = None, base: Base | None = None
) -> Composed:
    """Make the pictures of a scene and write each as soon as it is done.

    Args:
        source: where the options came from, for messages.
        only: keep only this seed's picture (the others of its batch are made all the same: the size of a batch moves
            the last bits).
        base: of the options' model, where it is loaded already.

    Raises:
        OptionsError: everything that is wrong with the scene.
    """
    checked = check_options(options, source, only=only)
    if options.pose is not None and options.pose.photo is not None:
        checked = check_options(with_photo_read(options), source, only=only)
    scene, resolved, concepts = checked.scene, checked.options, checked.concepts
    bare = base or load_base(options.model, vae=options.vae, device=device_named(options.device))
    with Attachment() as attachment:
        networks = put_networks_on(bare, options.networks, source, merge=options.merge_networks)
        attachment.add(networks.detach)
        everywhere = options.concept_networks == "everywhere"
        base, attached = attach_concepts(bare, concepts, strengths=options.strengths, networks=everywhere)
        attachment.add(attached.detach)
        check_scene(scene, base, source)
        directed = region_networks(base, scene, resolved, concepts, source)
        scene = dataclasses.replace(scene, precision=resolve(scene.precision, base.device))
        resolved = dataclasses.replace(resolved, precision=scene.precision.value)
        made: list[tuple[int, Image.Image, Path]] = []
        for batch, images in _batches(base, scene, options, directed):
            about = _about(dataclasses.replace(resolved, seeds=tuple(batch), batch_size=len(batch)), base)
            for seed, image in zip(batch, images):
                if only in (None, seed):
                    path = picture_of(options, seed, only)
                    save_picture(image, path, {**about, "seed": seed})
                    made.append((seed, image, path))
    composed = Composed([path for _, _, path in made], [], bare)
    if grid := grid_of(options, only):
        labels = [f"seed {seed}" for seed, _, _ in made]
        save_picture(picture_grid([image for _, image, _ in made], _GRID_COLUMNS, labels), grid)
        composed.others.append(grid)
    if sheet := sheet_of(options):
        write_sheet(sheet, composed.pictures)
        composed.others.append(sheet)
    for path in composed.paths:
        log.info("%s", path)
    return composed


def _batches(
    base: Base, scene: Scene, options: SceneOptions, networks: Sequence[DirectedNetwork]
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Batches of seeds with their pictures, each as soon as it is done."""
    adapter = load_pose_reader(options.pose, base) if options.pose is not None else None
    readers = load_readers(options, base)
    running = running_previews(base, with_ending(options.output, "_running"), options.previews)
    with progress_bar(len(options.seed_list), "pictures") as bar, running as preview:
        for start in range(0, len(options.seed_list), options.batch_size):
            batch = options.seed_list[start : start + options.batch_size]

            def show(step: dict[str, Any], done: int = start, pictures: int = len(batch)) -> None:
                done_of_batch = (step["pass"] + (step["step"] + 1) / step["steps"]) / step["passes"]
                bar.update(done + pictures * done_of_batch - bar.n)
                preview(step)

            yield (
                batch,
                compose(
                    base,
                    scene,
                    seeds=batch,
                    adapter=adapter,
                    readers=readers,
                    batch_size=len(batch),
                    callback=show,
                    networks=networks,
                ),
            )


def _about(options: SceneOptions, base: Base) -> dict[str, Any]:
    """What a picture says about how it was made."""
    topology = base.topology
    native = topology.sample_size * topology.latent_factor
    scene = to_plain(dataclasses.replace(options, size=options.size or (native, native)))
    for name in ("output", "grid", "sheet", "previews"):  # of the run, not of the picture
        del scene[name]
    return {
        "version": __version__,
        "scene": scene,
        "topology": topology.fingerprint(),
        "made_on": str(base.device),
        "libraries": {library.__name__: library.__version__ for library in (torch, diffusers, transformers)},
    }
