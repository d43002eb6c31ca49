"""What `fusion_table.py` runs: every character trained and judged, every fusion made, measured and judged, once."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixshow.config.load import dump, load
from mixshow.config.train import TrainOptions
from mixshow.core.files import read_json, write_json
from mixshow.core.progress import log
from mixshow.core.stopwatch import cores
from mixshow.edlora.concept import Concept, attach_concepts, load_concept
from mixshow.evaluation.identity import HELD_OUT_PROMPTS
from mixshow.fusion.report import REPORT_FILE
from mixshow.models.base import Base, load_base
from mixshow.models.device import device_named
from mixshow.puppets.backgrounds import place_named
from mixshow.puppets.cast import write_cast
from mixshow.puppets.judge import Judge
from mixshow.recipes.demo import character_pictures
from mixshow.recipes.demo_options import fuse_options
from mixshow.recipes.fuse import fuse
from mixshow.recipes.side_by_side import train_all
from mixshow.recipes.train import CONCEPT_FILE

OPTIONS = Path(__file__).resolve().parents[1] / "options" / "train" / "edlora"
OURS, AVERAGE = "distill", "average"
_WITHOUT = "refine.method=none"
_APART = (_WITHOUT, "statistics.collect=independent")
# Overrides of `mixshow fuse` by the name of the way.
METHODS: Mapping[str, Sequence[str]] = {
    OURS: (),
    "distill_no_anchor": ("anchor.weight=0",),
    "solve": (_WITHOUT,),
    "solve_apart": _APART,
    "solve_no_anchor": (_WITHOUT, "anchor.weight=0"),
    "solve_sensitivity": (
        _WITHOUT,
        "statistics.row_weights=sensitivity",
        "anchor.weight=0.05",
    ),
    "solve_normalised": (*_APART, "statistics.normalise=inputs"),
    "solve_normalised_changes": (*_APART, "statistics.normalise=changes"),
    "solve_shrunk": (_WITHOUT, "statistics.shrinkage=0.5"),
    "solve_huber": (_WITHOUT, "solver.objective=huber"),
    "solve_cosine": (_WITHOUT, "solver.objective=cosine"),
    "distill_stop": ("refine.stop=true",),
    **{
        name: (_WITHOUT, f"method={name}")
        for name in ("constrained", "sum", AVERAGE, "svd", "concatenate", "ties", "dare", "orthogonal", "subspace")
    },
}


@dataclasses.dataclass(frozen=True)
class Table:
    """What is compared.

    Attributes:
        pictures: of each character and seed, from its own model and from ours.
        other_pictures: the same from the other ways' models; 0: their held-out report alone.
        steps: of training; None: as the options files say.
        more: further overrides of `mixshow fuse`.
        keep: the fused models too, in folders beside their results.
    """

    output: Path
    cast: Sequence[str]
    sizes: Sequence[int]
    seeds: Sequence[int]
    methods: Sequence[str]
    pictures: int
    other_pictures: int
    steps: int | None
    more: Sequence[str]
    keep: bool = False

    @property
    def members(self) -> list[str]:
        """The characters that any fusion is of."""
        return list(self.cast[: max(self.sizes)])

    def concept_folder(self, name: str, seed: int) -> Path:
        return self.output / "concepts" / f"{name}_seed{seed}{'' if self.steps is None else f'_steps{self.steps}'}"

    def single_file(self, name: str, seed: int) -> Path:
        return self.concept_folder(name, seed) / "judged.json"

    def fused_file(self, method: str, size: int, seed: int) -> Path:
        training = "" if self.steps is None else f"_steps{self.steps}"
        name = f"{'-'.join(self.cast[:size])}_seed{seed}{training}.json"
        return self.output / "fused" / method / name

    def pictures_of(self, method: str) -> int:
        return self.pictures if method == OURS else self.other_pictures


def run(table: Table) -> None:
    """Everything that is not done yet, one file each."""
    write_cast(table.output / "cast", table.members)
    base, judge = load_base("puppets", device=device_named("auto")), Judge.load()
    for seed in table.seeds:
        train_cast(table, seed)
        concepts = {name: load_concept(table.concept_folder(name, seed) / CONCEPT_FILE) for name in table.members}
        for name, concept in concepts.items():
            path = table.single_file(name, seed)
            if fewest(path) < table.pictures:
                tuned, attachment = attach_concepts(base, [concept])
                with attachment:
                    write_json(path, judged(judge, tuned, {name: concept}, table.pictures, path))
        for size in table.sizes:
            for method in table.methods:
                fused(table, judge, method, {name: concepts[name] for name in table.cast[:size]}, seed)


def train_cast(table: Table, seed: int) -> None:
    """Train the characters that are not trained yet, as many at a time as there are cores."""
    files = []
    for name in table.members:
        folder = table.concept_folder(name, seed)
        if (folder / CONCEPT_FILE).is_file():
            continue
        overrides = [
            f"output={folder}",
            f"seed={seed}",
            *(f"data.{part}s={table.output / 'cast' / name / part}" for part in ("image", "mask", "caption")),
            "sample.prompts=[]",
            *([] if table.steps is None else [f"train.steps={table.steps}"]),
        ]
        files.append(table.output / "options" / f"{folder.name}.yml")
        dump(load(TrainOptions, OPTIONS / f"{name}.yml", overrides), files[-1])
    together = max(1, cores())
    for start in range(0, len(files), together):
        log.info("training %s", ", ".join(file.stem for file in files[start : start + together]))
        train_all(files[start : start + together])


def fused(table: Table, judge: Judge, method: str, concepts: Mapping[str, Concept], seed: int) -> None:
    """Fuse, sample and judge, unless that is done."""
    path = table.fused_file(method, len(concepts), seed)
    if path.is_file() and fewest(path) >= table.pictures_of(method):
        return
    log.info("%s: %d characters, seed %d", method, len(concepts), seed)
    folder, options = path.with_suffix(""), path.with_suffix(".yml")
    dump(fuse_options([Path(concept.source) for concept in concepts.values()], folder), options)
    if not (folder / REPORT_FILE).is_file():  # else it was kept
        fuse(options, [*METHODS[method], *table.more])
    found = read_json(folder / REPORT_FILE)
    about = {key: found[key] for key in ("held_out", "held_out_solved", "seconds", "options")}
    model = load_base(folder, device=device_named("auto"))
    write_json(path, {**judged(judge, model, concepts, table.pictures_of(method), path), **about})
    if not table.keep:
        shutil.rmtree(folder)


def fewest(path: Path) -> int:
    """Pictures of each character that were judged; 0 where there is no file yet."""
    return min(map(len, read_json(path)["identity"].values()), default=0) if path.is_file() else 0


def judged(
    judge: Judge, model: Base, concepts: Mapping[str, Concept], pictures: int, before: Path
) -> dict[str, dict[str, list[bool]]]:
    """By character, for each picture: was it the character, was it the place?

    Args:
        before: where those judged before are; they are not sampled again.
    """
    known = read_json(before) if before.is_file() else {}
    found: dict[str, dict[str, list[bool]]] = {
        key: {name: list(known.get(key, {}).get(name, [])) for name in concepts} for key in ("identity", "place")
    }
    for name, concept in concepts.items():
        first = len(found["identity"][name])
        if first >= pictures:
            continue
        images = character_pictures(model, concept.text, count=pictures - first, first_seed=first)
        prompts = [HELD_OUT_PROMPTS[i % len(HELD_OUT_PROMPTS)] for i in range(first, pictures)]
        seen = [attributes["background"] for attributes in judge.attributes(images)]
        found["identity"][name] += [who == name for who in judge.identities(images)]
        found["place"][name] += [place == place_named(prompt) for place, prompt in zip(seen, prompts)]
    return found
