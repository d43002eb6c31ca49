"""How well regions keep characters apart, by number of characters: given, found from attention, published, or none.

Scenes have random poses, places, casts and boxes from a fixed seed; in every third one the boxes overlap, in every
third they are shifted. The judge looks at the part of the picture that is nearest to each character's skeleton.

right     share of characters whose part the judge takes for them
present   the same, whoever of the cast stands in which part: what a way can reach that is not told who stands where
wrong     share of parts, and of windows between the characters, in which it sees another cast member (in a window: any)
wrong anywhere  share of pictures with at least one of these
seams     change of colour from 8 pixels before to 8 pixels behind the regions' borders, relative to that across the
          parallel lines 16 pixels away; the mean over all borders inside the picture. Ways without regions are looked
          at in the same places: what they have is no seam

`drawn` is the world's own drawing of the same scene: what the judge makes of perfect pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from mixshow.config.load import load
from mixshow.config.scene import SceneOptions
from mixshow.core.files import read_json, write_json
from mixshow.evaluation.interval import Share
from mixshow.evaluation.page import markdown_table
from mixshow.evaluation.seams import seam
from mixshow.models import Base, load_base
from mixshow.models.base import read_vocabulary
from mixshow.puppets.backgrounds import BACKGROUNDS, PLACES
from mixshow.puppets.captions import NUMBERS
from mixshow.puppets.cast import CAST, member
from mixshow.puppets.judge import NOBODY, Judge
from mixshow.puppets.world import WIDE, sample_scene
from mixshow.recipes.demo_options import STEPS
from mixshow.recipes.scene import read_scene
from mixshow.sampling.compose import compose
from mixshow.sampling.conditions import load_adapter
from mixshow.sampling.people_boxes import boxes_around
from mixshow.sampling.pictures import save_picture

WAYS: dict[str, Mapping[str, Any]] = {
    "regions, detail": {"edges": "soft", "detail": {"guidance": 5.0}},
    "regions": {"edges": "soft"},
    "published hard boxes": {"edges": "hard"},
    "from attention, guard": {"edges": "soft", "guard": True},
    "plain prompt": {"regions": []},
}
UNPLACED = ("from attention, guard", "plain prompt")  # the prompt names everyone, nothing says who stands where
DRAWN = "drawn"
SEED = 90_001
GUIDANCE, POSED = 6.0, 0.6  # chosen on scenes from number 1000 on
FEWEST = 2
EMPTY = 0.1  # a window of which the characters' parts cover no more is between them
Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Staged:
    """One scene: who stands where.

    Attributes:
        parts: what the judge looks at, for each character.
        boxes: of the regions; they may overlap.
    """

    number: int
    cast: tuple[str, ...]
    background: str
    people: tuple[np.ndarray, ...]
    parts: tuple[Box, ...]
    boxes: tuple[Box, ...]
    drawing: Image.Image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a fused model of cast members, of the built-in base")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--most", type=int, default=5, help="characters in a scene; no more than the model has")
    parser.add_argument("--output", type=Path, default=Path("experiments/compose_scenes"))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="key=value",
        help="scene options of the ways with given regions but the published one",
    )
    parser.add_argument("--each", nargs="+", default=[], metavar="key=value", help="options of each of their regions")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--report", action="store_true", help="make no pictures, show what is there")


def run(arguments: argparse.Namespace) -> None:
    """Make the pictures that are not there yet, and print the table."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = {
        "model": str(arguments.folder.resolve()),
        "most": arguments.most,
        "set": sorted(arguments.set),
        "each": sorted(arguments.each),
    }
    check_settings(arguments.output / "settings.json", settings)
    if not arguments.report:
        make(arguments)
    records = [read_json(path) for path in sorted((arguments.output / "records").glob("*.json"))]
    print(report(records))


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Records of other settings do not belong into one table."""
    if path.exists() and read_json(path) != settings:
        raise SystemExit(f"{path}: pictures of other settings are there; give another --output")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def make(arguments: argparse.Namespace) -> None:
    """One record and one picture for each scene and way."""
    concepts = read_vocabulary(str(arguments.folder)).concepts
    known = [name for name in CAST if name in concepts]
    if len(known) < FEWEST:
        raise SystemExit(f"{arguments.folder}: expected a model of {FEWEST} or more cast members, found {known}")
    base, judge = load_base(arguments.folder), Judge.load()
    for number in range(arguments.scenes):
        scene = staged(number, known, min(arguments.most, len(known)))
        for way in (DRAWN, *arguments.ways):
            path = arguments.output / "records" / f"{number:03d}_{way.replace(',', '').replace(' ', '_')}.json"
            if path.exists():
                continue
            started = time.perf_counter()
            picture = scene.drawing if way == DRAWN else composed(base, scene, way, concepts, arguments)
            seconds = time.perf_counter() - started
            path.parent.mkdir(parents=True, exist_ok=True)
            save_picture(picture, arguments.output / "pictures" / f"{path.stem}.png")
            about = {"way": way, "scene": number, "seconds": round(seconds, 2)}
            write_json(path, {**about, **judged(judge, scene, picture)})


def staged(number: int, names: Sequence[str], most: int) -> Staged:
    """Scene `number`: the number of characters goes round, who they are and where is random."""
    rng = np.random.default_rng([SEED, number])
    cast = tuple(str(name) for name in rng.permutation(names)[: FEWEST + number % (most - FEWEST + 1)])
    background = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    world = sample_scene(SEED, number, WIDE, looks=[member(name) for name in cast], background=background)
    people = tuple(world.people)
    parts = tuple(boxes_around(people, WIDE))
    kind = number // (most - FEWEST + 1) % 3
    boxes = [shifted(box, rng, kind) for box in parts]
    return Staged(number, cast, background, people, parts, tuple(boxes), world.render())


def shifted(box: Box, rng: np.random.Generator, kind: int) -> Box:
    """The box as it is (0), moved a little (1), or larger, so that it overlaps its neighbours (2)."""
    left, top, right, bottom = box
    width = right - left
    moved = int(rng.integers(-width // 8, width // 8 + 1)) if kind == 1 else 0
    wider = int(rng.integers(width // 8, width // 3 + 1)) if kind == 2 else 0
    return max(0, left + moved - wider), top, min(WIDE[0], right + moved + wider), bottom


def composed(
    base: Base, scene: Staged, way: str, concepts: Mapping[str, str], arguments: argparse.Namespace
) -> Image.Image:
    """The scene's picture."""
    place = PLACES[scene.background]
    together = " and ".join(concepts[name] for name in scene.cast)
    everyone = together if way in UNPLACED else f"{NUMBERS[len(scene.cast)]} puppets"
    values: dict[str, Any] = {
        "model": str(arguments.folder),
        "output": "scene.png",
        "size": list(WIDE),
        "prompt": f"a photo of {everyone}, {place}",
        "pose": {"people": [points.tolist() for points in scene.people], "span": [0.0, POSED]},
        "regions": [
            {
                "concept": name,
                "prompt": f"a photo of {{concept}}, {place}",
                **({"from": "attention"} if way in UNPLACED else {"box": list(box)}),
            }
            for name, box in zip(scene.cast, scene.boxes)
        ],
        "guidance": GUIDANCE,
        "steps": STEPS,
        **WAYS[way],
    }
    own = way in ("regions", "regions, detail")
    if own:
        each = OmegaConf.to_container(OmegaConf.from_dotlist(arguments.each))
        values["regions"] = [{**region, **each} for region in values["regions"]]  # type: ignore[dict-item]
    options = load(SceneOptions, Path(f"scene {scene.number}"), arguments.set if own else (), values=values)
    problems: list[str] = []
    value, _ = read_scene(options, problems, concepts)
    if problems:
        raise SystemExit("\n".join(problems))
    adapter = load_adapter(options.pose.adapter, base) if options.pose else None
    return compose(base, value, seeds=[scene.number], adapter=adapter)[0]


def judged(judge: Judge, scene: Staged, picture: Image.Image) -> dict[str, Any]:
    """What the judge sees in a picture, and its seams."""
    empty = windows_between(scene.parts)
    seen = judge.identities([picture.convert("RGB").crop(box) for box in (*scene.parts, *empty)])
    found, elsewhere = seen[: len(scene.cast)], seen[len(scene.cast) :]
    return {"cast": list(scene.cast), "seen": found, "between": elsewhere, "seam": seam(picture, scene.boxes)}


def windows_between(parts: Sequence[Box]) -> list[Box]:
    """Windows of the parts' mean size that hardly touch any of them."""
    width = round(statistics.mean(right - left for left, _, right, _ in parts))
    height = round(statistics.mean(bottom - top for _, top, _, bottom in parts))
    taken = np.zeros((WIDE[1], WIDE[0]))
    for left, top, right, bottom in parts:
        taken[top:bottom, left:right] = 1
    lefts = range(0, WIDE[0] - width + 1, max(1, width // 2))
    windows = [(left, WIDE[1] - height, left + width, WIDE[1]) for left in lefts]
    return [box for box in windows if taken[box[1] : box[3], box[0] : box[2]].mean() <= EMPTY]


def report(records: Sequence[Mapping[str, Any]]) -> str:
    """One row for each way and number of characters."""
    rows = []
    for way in (DRAWN, *WAYS):
        own = [record for record in records if record["way"] == way]
        counts = sorted({len(record["cast"]) for record in own})
        for count in [*counts, 0]:
            if chosen := [record for record in own if count in (0, len(record["cast"]))]:
                rows.append([way, count or "all", len(chosen), *measures(chosen)])
    header = ["way", "characters", "scenes", "right", "present", "wrong", "wrong anywhere", "seams", "seconds"]
    return markdown_table(header, rows)


def measures(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Right, present and wrong ones with 95 % intervals, seams with twice their standard error, seconds a picture."""
    pairs = [pair for record in records for pair in zip(record["cast"], record["seen"])]
    between = [name for record in records for name in record["between"]]
    wrong = [seen not in (wanted, NOBODY) for wanted, seen in pairs] + [name != NOBODY for name in between]
    anywhere = [
        any(seen not in (wanted, NOBODY) for wanted, seen in zip(record["cast"], record["seen"]))
        or any(name != NOBODY for name in record["between"])
        for record in records
    ]
    present = [sum((Counter(record["cast"]) & Counter(record["seen"])).values()) for record in records]
    seams = [record["seam"] for record in records if record["seam"] is not None]
    spread = 2 * statistics.stdev(seams) / math.sqrt(len(seams)) if len(seams) > 1 else math.nan
    return [
        str(Share(sum(wanted == seen for wanted, seen in pairs), len(pairs))),
        str(Share(sum(present), len(pairs))),
        str(Share(sum(wrong), len(wrong))),
        str(Share(sum(anywhere), len(anywhere))),
        f"{statistics.mean(seams):.2f} +- {spread:.2f}" if seams else "-",
        f"{statistics.median(record['seconds'] for record in records):.1f}",
    ]
