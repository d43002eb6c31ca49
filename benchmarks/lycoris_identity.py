"""What each algorithm learns of a character, and what that costs, on the built-in base.

    python benchmarks/lycoris_identity.py --cast pip luma --seeds 0 1 2 --output experiments/lycoris_identity

Every options file in options/train/lycoris is trained as `mixshow train` would, once per cast member and seed, and
samples the prompts that the demo measures with. Identity: pictures in which the judge sees the character. Place:
pictures in which it sees the place that the prompt names. Seconds: a training run's processor time by its steps.

Stopped, it goes on where it was; what is done is not done again, and `--report` prints what there is.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mixshow.core.files import read_json, write_json
from mixshow.core.progress import log
from mixshow.edlora.concept import attach_concepts, load_concept
from mixshow.evaluation.identity import HELD_OUT_PROMPTS
from mixshow.evaluation.interval import Share, share_of
from mixshow.evaluation.page import markdown_table
from mixshow.models.base import Base, load_base
from mixshow.puppets.backgrounds import place_named
from mixshow.puppets.cast import CAST, write_cast
from mixshow.puppets.judge import Judge
from mixshow.recipes.demo import SAMPLES_PER_CHARACTER, character_pictures
from mixshow.recipes.train import CONCEPT_FILE, train

OPTIONS = Path(__file__).resolve().parents[1] / "options" / "train" / "lycoris"
ALGORITHMS = sorted(path.stem for path in OPTIONS.glob("*.yml"))
UNTRAINED = "class word alone"


def main() -> None:
    """Train, sample and judge what is not done yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("experiments/lycoris_identity"))
    parser.add_argument("--cast", nargs="+", choices=list(CAST), default=["pip", "luma"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--algos", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pictures", type=int, default=SAMPLES_PER_CHARACTER, help="of each trained character")
    parser.add_argument("--report", action="store_true", help="print what is done, run nothing")
    arguments = parser.parse_args()
    runs = [
        Run(arguments.output, algo, name, seed, arguments.steps)
        for seed in arguments.seeds
        for name in arguments.cast
        for algo in arguments.algos
    ]
    if not arguments.report:
        write_cast(arguments.output / "cast", arguments.cast)
        base, judge = load_base("puppets"), Judge.load()
        for name in arguments.cast:
            judged(judge, base, f"a {CAST[name].kind}", name, arguments.pictures, untrained(arguments.output, name))
        for run in runs:
            run.trained()
            with run.attached(base) as (tuned, text):
                judged(judge, tuned, text, run.name, arguments.pictures, run.folder)
    print(report(arguments.output, arguments.cast, arguments.algos, runs, arguments.pictures))


class Run:
    """One character, trained with one algorithm and seed."""

    def __init__(self, output: Path, algo: str, name: str, seed: int, steps: int) -> None:
        self.cast, self.algo, self.name, self.seed, self.steps = output / "cast" / name, algo, name, seed, steps
        self.folder = output / algo / f"{name}_seed{seed}_steps{steps}"
        self.figures = self.folder / "training.json"

    def trained(self) -> None:
        """Train, unless that is done, and write down what it cost."""
        if self.figures.is_file():
            return
        log.info("%s: %s, seed %d", self.algo, self.name, self.seed)
        start = time.process_time()
        run = train(
            OPTIONS / f"{self.algo}.yml",
            [
                f"output={self.folder}",
                f"seed={self.seed}",
                f"concept.tokens=<{self.name}1>+<{self.name}2>",
                f"concept.initialiser=<rand-0.1>+{CAST[self.name].kind}",
                *(f"data.{part}s={self.cast / part}" for part in ("image", "mask", "caption")),
                f"train.steps={self.steps}",
                "sample.prompts=[]",
                f"checkpoint.every={self.steps}",
            ],
        )
        seconds = time.process_time() - start
        assert run is not None
        if run.steps == run.first_step:
            log.warning("%s: trained before without its time; the table leaves the time out", self.folder)
        file = self.folder / CONCEPT_FILE
        network = load_concept(file).network
        write_json(
            self.figures,
            {
                "seconds": seconds / (run.steps - run.first_step) if run.steps > run.first_step else None,
                "parameters": sum(t.numel() for key, t in network.items() if not key.endswith((".alpha", "on_input"))),
                "bytes": file.stat().st_size,
            },
        )

    @contextlib.contextmanager
    def attached(self, base: Base) -> Iterator[tuple[Base, str]]:
        """The base with the concept on it, and how prompts name it."""
        concept = load_concept(self.folder / CONCEPT_FILE)
        tuned, attachment = attach_concepts(base, [concept])
        with attachment:
            yield tuned, concept.text


def untrained(output: Path, name: str) -> Path:
    return output / "untrained" / name


def judged_file(folder: Path, pictures: int) -> Path:
    return folder / f"judged_{pictures}.json"


def judged(judge: Judge, base: Base, text: str, name: str, pictures: int, folder: Path) -> None:
    """Sample and judge, unless that is done, and write down how many pictures were right."""
    path = judged_file(folder, pictures)
    if path.is_file():
        return
    images = character_pictures(base, text, count=pictures)
    places = [place_named(HELD_OUT_PROMPTS[i % len(HELD_OUT_PROMPTS)]) for i in range(pictures)]
    seen = [attributes["background"] for attributes in judge.attributes(images)]
    identity = share_of([found == name for found in judge.identities(images)])
    place = share_of([found == wanted for found, wanted in zip(seen, places)])
    write_json(path, {"identity": identity.hits, "place": place.hits, "pictures": pictures})


def report(output: Path, cast: Sequence[str], algos: Sequence[str], runs: Sequence[Run], pictures: int) -> str:
    """The table of what is done."""
    rows = [[UNTRAINED, *shares([judged_file(untrained(output, name), pictures) for name in cast]), "-", "-", "-"]]
    for algo in algos:
        own = [run for run in runs if run.algo == algo]
        figures = [read_json(run.figures) for run in own if run.figures.is_file()]
        rows.append([algo, *shares([judged_file(run.folder, pictures) for run in own]), *costs(figures)])
    header = ["algorithm", "identity (95 %)", "place (95 %)", "parameters", "file, MB", "processor s per step"]
    seeds = sorted({run.seed for run in runs})
    about = f"{', '.join(cast)}; seeds {seeds}; {runs[0].steps} steps; {pictures} pictures of each character and run"
    return f"{about}\n{markdown_table(header, rows)}"


def shares(files: Sequence[Path]) -> list[str]:
    """Identity and place of all pictures together."""
    found = [read_json(path) for path in files if path.is_file()]
    trials = sum(row["pictures"] for row in found)
    return [str(Share(sum(row[key] for row in found), trials)) if found else "-" for key in ("identity", "place")]


def costs(figures: Sequence[dict[str, Any]]) -> list[str]:
    """Parameters, size of the file, least processor seconds of a step."""
    if not figures:
        return ["-", "-", "-"]
    times = [row["seconds"] for row in figures if row["seconds"] is not None]
    return [
        f"{figures[0]['parameters']:,}",
        f"{figures[0]['bytes'] / 1e6:.1f}",
        f"{min(times):.2f}" if times else "-",
    ]


if __name__ == "__main__":
    main()
