"""Characters fused in every way, on the built-in base: identity and prompt alignment, single and fused, E and drift.

    python benchmarks/fusion_table.py --cast-sizes 2 4 8 --seeds 0 1 2 --output experiments/fusion_table

The form of tables 1 and 2 of Mix-of-Show (arXiv 2305.18292). Every character is trained once per seed with its file in
options/train/edlora; the first so many of them are fused in each way as `mixshow fuse` would. Pictures are paired: the
same prompts and seeds for a character's own model and for the fused one. Identity: pictures in which the judge sees
the character. Place: pictures in which it sees the place that the prompt names. E and drift: `mixshow fuse`'s held-out
report.

Stopped, it goes on where it was; what is done is not done again, and `--report` prints what there is. Several may run
at once, for other seeds. More pictures asked for later are added to those that are there.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixshow.config.load import dump, load
from mixshow.config.train import TrainOptions
from mixshow.core.files import read_json, write_json
from mixshow.core.progress import log
from mixshow.core.stopwatch import cores
from mixshow.edlora.concept import Concept, attach_concepts, load_concept
from mixshow.evaluation.identity import HELD_OUT_PROMPTS
from mixshow.evaluation.interval import PairedDifference, Share, share_of
from mixshow.evaluation.page import markdown_table
from mixshow.fusion.report import REPORT_FILE
from mixshow.models.base import Base, load_base
from mixshow.models.device import device_named
from mixshow.puppets.backgrounds import place_named
from mixshow.puppets.cast import CAST, write_cast
from mixshow.puppets.judge import Judge
from mixshow.recipes.demo import character_pictures
from mixshow.recipes.demo_options import fuse_options
from mixshow.recipes.fuse import fuse
from mixshow.recipes.side_by_side import train_all
from mixshow.recipes.train import CONCEPT_FILE

OPTIONS = Path(__file__).resolve().parents[1] / "options" / "train" / "edlora"
OURS, AVERAGE = "distill", "average"
Hits = Mapping[tuple[str, int], bool]
_WITHOUT = "refine.method=none"
# Overrides of `mixshow fuse` by the name of the way.
METHODS: Mapping[str, Sequence[str]] = {
    OURS: (),
    "distill_no_anchor": ("anchor.weight=0",),
    "solve": (_WITHOUT,),
    "solve_no_anchor": (_WITHOUT, "anchor.weight=0"),
    "solve_sensitivity": (
        _WITHOUT,
        "statistics.row_weights=sensitivity",
        "statistics.steps=8",
        "anchor.weight=0.05",
    ),
    "solve_normalised": (_WITHOUT, "statistics.normalise=inputs"),
    "solve_normalised_changes": (_WITHOUT, "statistics.normalise=changes"),
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


def main() -> None:
    """Train, fuse and judge what is not done yet; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("experiments/fusion_table"))
    parser.add_argument("--cast", nargs="+", choices=list(CAST), default=list(CAST))
    parser.add_argument("--cast-sizes", nargs="+", type=int, default=[2, 4, 8], help="so many characters are fused")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--pictures", type=int, default=100, help="of each character and seed")
    parser.add_argument(
        "--other-pictures", type=int, help="the same in ways other than ours; --pictures when not given"
    )
    parser.add_argument("--steps", type=int, help="of training; as the options files say when not given")
    parser.add_argument(
        "--fuse",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="further options of mixshow fuse; give each choice of them an --output of its own",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the fused models, beside their results; more pictures are made of these",
    )
    parser.add_argument("--report", action="store_true", help="print what is done, run nothing")
    given = parser.parse_args()
    if not all(1 < size <= len(given.cast) for size in given.cast_sizes):
        parser.error(f"--cast-sizes: expected numbers from 2 to {len(given.cast)}, found {given.cast_sizes}")
    others = given.pictures if given.other_pictures is None else given.other_pictures
    table = Table(
        given.output, given.cast, given.cast_sizes, given.seeds, given.methods, given.pictures, others, given.steps,
        given.fuse, given.keep,
    )  # fmt: skip
    if not given.report:
        run(table)
    print(report(table))


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


@dataclasses.dataclass(frozen=True)
class Pairs:
    """One way's pictures with those of the characters' own models, and what it measured.

    Attributes:
        single: by `identity` and `place`, for the pictures that both made, by character and number. `fused` likewise.
        errors: E of each character.
        drift: of the base.
    """

    single: Mapping[str, Hits]
    fused: Mapping[str, Hits]
    errors: Sequence[float]
    drift: float

    def change(self, key: str = "identity") -> PairedDifference:
        return PairedDifference.of(list(self.single[key].values()), list(self.fused[key].values()))


def pairs_of(table: Table, method: str, size: int) -> dict[int, Pairs]:
    """By seed, what is done."""
    found: dict[int, Pairs] = {}
    for seed in table.seeds:
        path = table.fused_file(method, size, seed)
        if not path.is_file():
            continue
        run = read_json(path)
        names = table.cast[:size]
        own = {name: read_json(table.single_file(name, seed)) for name in names}
        both = {
            key: {
                (name, number): pair
                for name in names
                for number, pair in enumerate(zip(own[name][key][name], run[key][name]))
            }
            for key in ("identity", "place")
        }
        found[seed] = Pairs(
            {key: {place: pair[0] for place, pair in pairs.items()} for key, pairs in both.items()},
            {key: {place: pair[1] for place, pair in pairs.items()} for key, pairs in both.items()},
            list(run["held_out"]["errors"].values()),
            run["held_out"]["drift"],
        )
    return found


def report(table: Table) -> str:
    """One table for each number of characters, of what is done."""
    training = "as the options files say" if table.steps is None else f"{table.steps} steps"
    parts = [
        f"{table.pictures} pictures of each character and seed in '{OURS}', {table.other_pictures} in the others; "
        f"seeds {list(table.seeds)}; training: {training}\n"
        "change: of identity, over pairs of pictures (95 % interval); seeds: from seed to seed; ahead: identity of "
        f"'{OURS}' less the way's, mean and standard deviation over seeds, ~ where the first is not larger; E: mean "
        "(least..most); ratios: to averaging"
    ]
    header = [
        *("fused by", "identity, single -> fused (95 %)", "change", "seeds", "place, single -> fused"),
        *("E", "E ratio", "drift", "drift ratio", "ahead"),
    ]
    for size in table.sizes:
        all_pairs = {method: pairs_of(table, method, size) for method in METHODS}
        rows = [row(method, all_pairs[method], all_pairs) for method in table.methods if all_pairs[method]]
        parts.append(f"{size} characters: {', '.join(table.cast[:size])}\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def row(method: str, pairs: Mapping[int, Pairs], others: Mapping[str, Mapping[int, Pairs]]) -> list[str]:
    """One way's row, over all its seeds."""
    whole = {key: [hit for own in pairs.values() for hit in own.fused[key].values()] for key in ("identity", "place")}
    single = {key: [hit for own in pairs.values() for hit in own.single[key].values()] for key in ("identity", "place")}
    changes = [own.change().value for own in pairs.values() if own.fused["identity"]]
    errors = [error for own in pairs.values() for error in own.errors]
    average = {seed: own for seed, own in others[AVERAGE].items() if seed in pairs}
    return [
        method,
        *(
            [
                f"{percent(share_of(single['identity']))} -> {share_of(whole['identity'])}",
                str(PairedDifference.of(single["identity"], whole["identity"])),
                f"{100 * min(changes):+.1f}..{100 * max(changes):+.1f}",
                f"{percent(share_of(single['place']))} -> {percent(share_of(whole['place']))}",
            ]
            if whole["identity"]
            else ["-"] * 4
        ),
        f"{statistics.mean(errors):.2f} ({min(errors):.2f}..{max(errors):.2f})",
        ratio(
            [statistics.mean(own.errors) for own in pairs.values()],
            [statistics.mean(a.errors) for a in average.values()],
        ),
        f"{statistics.mean(own.drift for own in pairs.values()):.3f}",
        ratio([own.drift for own in pairs.values()], [own.drift for own in average.values()]),
        "" if method == OURS else ahead(others[OURS], pairs),
    ]


def percent(share: Share) -> str:
    return f"{100 * share.value:.1f} %"


def ratio(own: Sequence[float], of: Sequence[float]) -> str:
    """Of the means, where both are of the same seeds."""
    return f"{statistics.mean(own) / statistics.mean(of):.2f}" if len(own) == len(of) and sum(of) > 0 else "-"


def ahead(ours: Mapping[int, Pairs], theirs: Mapping[int, Pairs]) -> str:
    """How much more often ours is the character, in points, over the seeds and pictures that both have."""
    found = []
    for seed in sorted(ours.keys() & theirs.keys()):
        own, other = ours[seed].fused["identity"], theirs[seed].fused["identity"]
        shared = sorted(own.keys() & other.keys())
        if shared:
            found.append(100 * PairedDifference.of([other[key] for key in shared], [own[key] for key in shared]).value)
    if not found:
        return "-"
    if len(found) == 1:
        return f"{found[0]:+.1f} (one seed)"
    mean, spread = statistics.mean(found), statistics.stdev(found)
    return f"{'' if abs(mean) > spread else '~'}{mean:+.1f} ± {spread:.1f}"


if __name__ == "__main__":
    main()
