"""What isolation and the token guard do to identity and to seams, on scenes of the built-in base's characters.

    python benchmarks/leakage.py FUSED [--cast pip luma rusty] [--scenes 24] [--seeds 0 1 2]

FUSED is a fused model of the cast (`mixshow demo` leaves one in its folder). The scenes are the demo's, of other poses;
every setting gets the same ones with the same seeds. "named": the scene's prompt names the characters, which is where a
guard has something to do; "ratio": regions give part of their attention to that prompt besides.

Right: regions in which the judge sees their character. Wrong: regions in which it sees another one. Gained, lost:
regions right with a setting and not with "off", and the other way round. Seams: how much pictures change across
the borders of regions, as a multiple of the change beside them (`mixshow/evaluation/seams.py`).

Stopped, it goes on where it was; what is done is not done again, and `--report` prints what there is.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mixshow.config.isolation import IsolateOptions
from mixshow.core.errors import OptionsError
from mixshow.core.files import read_json, write_json
from mixshow.core.progress import log
from mixshow.edlora.concept import Concept
from mixshow.evaluation.interval import share_of
from mixshow.evaluation.page import markdown_table
from mixshow.evaluation.seams import seam
from mixshow.models.base import Base, load_base
from mixshow.puppets.backgrounds import PLACES
from mixshow.puppets.cast import CAST
from mixshow.puppets.judge import NOBODY, Judge
from mixshow.recipes.scene import read_scene
from mixshow.recipes.stage_plan import StagedScene, scene_options, stage_scenes
from mixshow.sampling.compose import compose
from mixshow.sampling.conditions import load_adapter
from mixshow.sampling.pictures import save_picture
from mixshow.sampling.scene import Scene

OFF = "off"
_NAMED = {"named": True}
SETTINGS: dict[str, dict[str, Any]] = {
    OFF: {},
    "isolate to 0.2": {"isolate": 0.2},
    "isolate to 0.4": {"isolate": 0.4},
    "isolate to 0.7": {"isolate": 0.7},
    "isolate to 1.0": {"isolate": 1.0},
    "named": _NAMED,
    "named, guard": {**_NAMED, "guard": True},
    "named, guard, isolate to 0.4": {**_NAMED, "guard": True, "isolate": 0.4},
    "named, ratio 0.3": {**_NAMED, "ratio": 0.3},
    "named, ratio 0.3, guard": {**_NAMED, "ratio": 0.3, "guard": True},
    "named, ratio 0.3, guard, isolate to 0.4": {**_NAMED, "ratio": 0.3, "guard": True, "isolate": 0.4},
}
_SEED = 80_001  # of the scenes: neither the demo's nor those its settings were chosen on
_Z = 1.96
_NOTHING = 1e-9


def main() -> None:
    """Compose and judge what is not done yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("fused", type=Path, help="a fused model of the cast")
    parser.add_argument("--cast", nargs="+", choices=list(CAST), default=["pip", "luma", "rusty"])
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="pictures of each scene")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--output", type=Path, default=Path("experiments/leakage"))
    parser.add_argument("--report", action="store_true", help="print what is done, run nothing")
    arguments = parser.parse_args()
    scenes = stage_scenes(arguments.cast, arguments.scenes, seed=_SEED)
    if not arguments.report:
        run(arguments.fused, scenes, arguments.settings, arguments.seeds, arguments.output)
    print(report(scenes, arguments.settings, arguments.output))


def run(
    fused: Path, scenes: Sequence[StagedScene], settings: Sequence[str], seeds: Sequence[int], output: Path
) -> None:
    """Compose and judge every scene under every setting, scene by scene, and write down what was seen."""
    base, judge = load_base(fused), Judge.load()
    adapter = load_adapter("puppets", base)
    for staged in scenes:
        for setting in settings:
            path = result_file(output, setting, staged)
            if path.is_file():
                continue
            scene = scene_of(staged, base, fused, path, seeds, **SETTINGS[setting])
            pictures = compose(base, scene, seeds=seeds, adapter=adapter, batch_size=len(seeds))
            for seed, picture in zip(seeds, pictures):
                save_picture(picture, path.with_name(f"{path.stem}_seed{seed}.png"))
            write_json(path, judged(judge, staged, pictures))
            log.info("%s: %s", staged.name, setting)


def result_file(output: Path, setting: str, staged: StagedScene) -> Path:
    return output / setting.replace(", ", "_").replace(" ", "-") / f"{staged.name}.json"


def scene_of(
    staged: StagedScene,
    base: Base,
    fused: Path,
    path: Path,
    seeds: Sequence[int],
    *,
    isolate: float | None = None,
    guard: bool = False,
    named: bool = False,
    ratio: float = 0.0,
) -> Scene:
    """The demo's scene with a setting.

    Args:
        isolate: up to which part of the steps.
        named: the scene's prompt names the characters.
        ratio: base ratio of the regions.
    """
    words = base.vocabulary.concepts
    concepts = {name: Concept(dict.fromkeys(words[name].split(), torch.empty(0)), {}) for name in staged.cast}
    options = scene_options(staged, concepts, model=fused, output=path.with_suffix(".png"), seeds=seeds)
    together = " and ".join(f"a photo of {words[name]}" for name in staged.cast)
    options = dataclasses.replace(
        options,
        prompt=f"{together}, {PLACES[staged.background]}" if named else options.prompt,
        regions=[dataclasses.replace(region, base_ratio=ratio) for region in options.regions],
        isolate=None if isolate is None else IsolateOptions(end=isolate),
        detail=None,  # it would make again, alone, what settings keep apart
        guard=guard,
    )
    problems: list[str] = []
    scene, _ = read_scene(options, problems, words)
    if problems:
        raise OptionsError(staged.name, problems)
    return scene


def judged(judge: Judge, staged: StagedScene, pictures: Sequence[Image.Image]) -> dict[str, Any]:
    """What the judge sees in every region of every picture, and every picture's seams."""
    crops = [picture.convert("RGB").crop(box) for picture in pictures for box in staged.boxes]
    return {
        "expected": list(staged.cast) * len(pictures),
        "seen": judge.identities(crops),
        "seams": [seam(picture, staged.boxes) for picture in pictures],
    }


def report(scenes: Sequence[StagedScene], settings: Sequence[str], output: Path) -> str:
    """The table of what is done."""
    found: dict[str, dict[str, Any]] = {}
    for setting in (OFF, *settings):
        files = {staged.name: result_file(output, setting, staged) for staged in scenes}
        found[setting] = {name: read_json(path) for name, path in files.items() if path.is_file()}
    rows = [row_of(setting, found[setting], found[OFF]) for setting in settings if found[setting]]
    header = ["setting", "right (95 %)", "wrong (95 %)", "gained, lost", "seams (95 %)"]
    return markdown_table(header, rows) if rows else "nothing is done yet"


def row_of(setting: str, scenes: Mapping[str, Any], plain: Mapping[str, Any]) -> list[object]:
    right, wrong = outcomes(scenes)
    shared = sorted(scenes.keys() & plain.keys())
    now, before = (outcomes({name: kind[name] for name in shared})[0] for kind in (scenes, plain))
    gained, lost = (sum(a and not b for a, b in zip(*pair)) for pair in ((now, before), (before, now)))
    seams = [value for scene in scenes.values() for value in scene["seams"] if value is not None]
    return [setting, share_of(right), share_of(wrong), f"{gained}, {lost}", mean_text(seams)]


def outcomes(scenes: Mapping[str, Any]) -> tuple[list[bool], list[bool]]:
    """For every region whether its own character, and whether another one, was seen; scenes in order of their names."""
    pairs = [pair for name in sorted(scenes) for pair in zip(scenes[name]["seen"], scenes[name]["expected"])]
    return [seen == wanted for seen, wanted in pairs], [seen not in (wanted, NOBODY) for seen, wanted in pairs]


def mean_text(values: Sequence[float]) -> str:
    if len(values) < 2:
        return ", ".join(f"{value:.2f}" for value in values)
    half = _Z * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.2f} ({half:.2f} either way, n = {len(values)})"


if __name__ == "__main__":
    main()
