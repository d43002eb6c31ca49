"""The files that a scene writes, and that none of them is one that is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError


def with_ending(path: Path, ending: str) -> Path:
    """`NAME<ending>.png` of `NAME.png`."""
    return path.with_name(path.stem + ending + path.suffix)


def picture_of(options: SceneOptions, seed: int, only: int | None = None) -> Path:
    """Where the picture of a seed goes.

    Args:
        only: the one seed whose picture is kept; None: all.
    """
    several = only is None and len(options.seed_list) > 1
    return with_ending(options.output, f"_seed{seed}") if several else options.output


def grid_of(options: SceneOptions, only: int | None = None) -> Path | None:
    """Where the grid goes; None: there is none."""
    several = only is None and len(options.seed_list) > 1
    return with_ending(options.output, "_grid") if options.grid and several else None


def sheet_of(options: SceneOptions) -> Path | None:
    """Where the scene's own sheet goes; None: there is none."""
    return options.output.with_suffix(".html") if options.sheet else None


def files_written(options: SceneOptions, only: int | None = None) -> list[Path]:
    """All files that a scene leaves."""
    pictures = [picture_of(options, seed, only) for seed in options.seed_list]
    others = [path for path in (grid_of(options, only), sheet_of(options)) if path is not None]
    return [*dict.fromkeys(pictures), *others]


def files_read(options: SceneOptions) -> dict[str, Path]:
    """All files that a scene names, by the option that does."""
    named: dict[str, Path | str | None] = {"model": options.model, "vae": options.vae, "masks": options.masks}
    named["layout"] = options.layout_file
    if options.image is not None:
        named["image.file"] = options.image.file
    if options.pose is not None:
        pose = options.pose
        named |= {"pose.image": pose.image, "pose.json": pose.json, "pose.photo": pose.photo}
    for i, condition in enumerate(options.conditions):
        named |= {f"conditions[{i}].image": condition.image, f"conditions[{i}].mask": condition.mask}
    for i, region in enumerate(options.regions):
        named[f"regions[{i}].mask"] = region.mask
        named[f"regions[{i}].network.file"] = None if region.network is None else region.network.file
    named |= {f"networks[{i}].file": network.file for i, network in enumerate(options.networks)}
    named |= {f"concepts[{i}]": path for i, path in enumerate(options.concepts)}
    return {name: Path(path).expanduser() for name, path in named.items() if path is not None}


def overwritten(outputs: Sequence[Path], inputs: Mapping[str, Path]) -> list[str]:
    """Outputs that are inputs, one sentence each.

    Args:
        inputs: by what names them.
    """
    return [
        f"output: expected a file of its own, found '{output}', which is read ({name})"
        for output in outputs
        for name, path in inputs.items()
        if _same(output, path)
    ]


def check_output(output: Path, inputs: Mapping[str, Path], what: str = "--output") -> None:
    """Raises MixshowError when what a command would write is one of the files that it reads."""
    for problem in overwritten([output], inputs):
        raise MixshowError(problem.replace("output", what, 1))


def check_files(scenes: Sequence[tuple[Path, SceneOptions, int | None]], sheet: Path | None = None) -> None:
    """Whether the scenes of one run leave each other's files alone, and their own options files.

    Args:
        scenes: each with where it is from, and the one seed whose picture is kept (None: all).
        sheet: of all of them.

    Raises:
        MixshowError: two would write the same file, or one that another of them reads.
    """
    taken: dict[Path, str] = {}
    inputs = {str(source): source for source, _, _ in scenes}
    for source, options, _ in scenes if len(scenes) > 1 or sheet is not None else ():
        inputs |= {f"{name} of {source}": path for name, path in files_read(options).items()}
    for source, options, only in scenes:
        outputs = files_written(options, only)
        for problem in overwritten(outputs, inputs):
            raise MixshowError(f"{source}: {problem}")
        for output in outputs:
            if output.resolve() in taken:
                raise MixshowError(
                    f"{source}: expected an output of its own, found '{output}' as of {taken[output.resolve()]}"
                )
        taken |= {output.resolve(): str(source) for output in outputs}
    if sheet is not None:
        check_output(sheet, inputs | {f"written by {source}": path for path, source in taken.items()}, "--sheet")


def _same(first: Path, second: Path) -> bool:
    """Whether two paths are one file; links are followed."""
    return first.resolve() == second.resolve() or (first.exists() and second.exists() and first.samefile(second))
