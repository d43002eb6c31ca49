"""The whole show on the built-in base: train three characters, fuse them, put them on stage, measure everything.

It writes the options of every step into its folder and runs them as the commands would, so that any step can be
repeated, or changed, by hand.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mixshow.config.load import dump
from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.core.files import read_json, write_json
from mixshow.core.progress import log
from mixshow.core.stopwatch import Stopwatch, machine, peak_memory_gb, resident_gb
from mixshow.edlora.concept import Concept, attach_concepts, load_concept
from mixshow.evaluation.identity import HELD_OUT_PROMPTS, identity_share
from mixshow.evaluation.interval import Share
from mixshow.evaluation.page import markdown_table
from mixshow.fusion.baselines import weight_average
from mixshow.fusion.members import Member
from mixshow.models.base import Base, load_base
from mixshow.puppets.cast import CAST, write_cast
from mixshow.puppets.judge import Judge
from mixshow.recipes.compose import compose_file
from mixshow.recipes.demo_options import GUIDANCE, STEPS, fuse_options, train_options
from mixshow.recipes.demo_page import write_page
from mixshow.recipes.fuse import fuse
from mixshow.recipes.puppets import judge_accuracy
from mixshow.recipes.side_by_side import train_all
from mixshow.recipes.stage_plan import StagedScene, scene_options, stage_scenes
from mixshow.recipes.train import CONCEPT_FILE
from mixshow.sampling.generate import sample

DEFAULT_CAST = ("pip", "luma", "rusty")
SCENES, SEEDS_PER_SCENE = 12, 3
SAMPLES_PER_CHARACTER = 36
REPORT, PAGE = "report.json", "index.html"
Pictures = dict[str, list[Image.Image]]  # by character


def demo(output: Path, *, names: Sequence[str] = DEFAULT_CAST, seed: int = 0) -> dict[str, Any]:
    """Run the show and write `index.html` and `report.json`.

    A run that was stopped goes on where its training was; a finished one is started anew.

    Args:
        output: folder for everything.
        names: three cast members.
        seed: of training.

    Raises:
        MixshowError: no cast member of that name, or not three different ones.
    """
    _check_cast(names)
    if (output / REPORT).exists():
        shutil.rmtree(output)
    watch = Stopwatch()
    with watch.stage("cast pictures"):
        write_cast(output / "cast", names)
    with watch.stage("training"):
        memory = resident_gb() + train_all([_training_options(name, output, seed) for name in names])
        concepts = {name: load_concept(output / name / CONCEPT_FILE) for name in names}
    with watch.stage("fusion"):
        folder = _fused(names, output)
    base, fused, judge = load_base("puppets"), load_base(folder), Judge.load()
    with watch.stage("single-character samples"):
        pictures = {
            "class_word": {name: character_pictures(base, f"a {CAST[name].kind}") for name in names},
            "single": {name: _single(base, concepts[name]) for name in names},
            "weight_average": _averaged(base, concepts),
            "fused": {name: character_pictures(fused, concepts[name].text) for name in names},
        }
    scenes = stage_scenes(names, SCENES)
    with watch.stage("scenes"):
        files = {scene.name: _composed(scene, concepts, folder, output) for scene in scenes}
    with watch.stage("judging"):
        accuracy = judge_accuracy(base, judge)
        identity = {way: _identity(judge, by_name) for way, by_name in pictures.items()}
        identity["scene"] = _scene_identity(judge, scenes, files)
    report = {
        "seconds": {**{key: round(value, 1) for key, value in watch.seconds.items()}, "total": round(watch.total, 1)},
        "peak_memory_gb": round(max(memory, peak_memory_gb()), 2),
        "judge_accuracy": accuracy.value,
        "identity": {way: share.value for way, share in identity.items()},
        "intervals": {"judge_accuracy": accuracy.to_json(), **{way: s.to_json() for way, s in identity.items()}},
        "held_out": read_json(folder / "fusion_report.json").get("held_out"),
        "cast": list(names),
        "seed": seed,
        "machine": machine(),
    }
    write_page(output / PAGE, report, folder=output, names=names, pictures=pictures, scenes=scenes, files=files)
    write_json(output / REPORT, report)
    print(summary(report))
    log.info("open %s", output / PAGE)
    return report


def character_pictures(
    base: Base,
    character: str,
    *,
    count: int = SAMPLES_PER_CHARACTER,
    first_seed: int = 0,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """Pictures of one character on prompts that neither training nor fusion used, the same seeds for every model.

    Args:
        character: how the prompt names it.
    """
    prompts = [HELD_OUT_PROMPTS[i % len(HELD_OUT_PROMPTS)] for i in range(first_seed, first_seed + count)]
    return sample(
        base,
        [prompt.format(concept=character) for prompt in prompts],
        seeds=range(first_seed, first_seed + count),
        guidance=guidance,
        steps=STEPS,
        batch_size=12,
    )


def summary(report: Mapping[str, Any]) -> str:
    """The scores and times as tables."""
    rows = [
        [way.replace("_", " "), str(Share(share["hits"], share["trials"]))]
        for way, share in report["intervals"].items()
    ]
    seconds = [[stage, f"{value:.0f}"] for stage, value in report["seconds"].items()]
    return "\n\n".join(
        (
            markdown_table(["the judge sees the right character in", "share (95 % interval)"], rows),
            markdown_table(["stage", "seconds"], seconds),
            f"peak memory: {report['peak_memory_gb']:.1f} GB",
        )
    )


def _check_cast(names: Sequence[str]) -> None:
    for name in names:
        if name not in CAST:
            raise MixshowError(f"cast member '{name}': unknown{did_you_mean(name, CAST)}")
    if len(set(names)) != 3 or len(names) != 3:
        raise MixshowError(f"the demo shows three different characters, found {len(names)}: {', '.join(names)}")


def _training_options(name: str, output: Path, seed: int) -> Path:
    """One character's options file, written for `mixshow train`."""
    options = output / "options" / f"train_{name}.yml"
    dump(train_options(name, pictures=output / "cast" / name, output=output / name, seed=seed), options)
    return options


def _fused(names: Sequence[str], output: Path) -> Path:
    options = output / "options" / "fuse.yml"
    dump(fuse_options([output / name / CONCEPT_FILE for name in names], output / "fused"), options)
    return fuse(options)


def _single(base: Base, concept: Concept) -> list[Image.Image]:
    tuned, attachment = attach_concepts(base, [concept])
    with attachment:
        return character_pictures(tuned, concept.text)


def _averaged(base: Base, concepts: Mapping[str, Concept]) -> Pictures:
    averaged, attachment = weight_average(base, [Member(concept) for concept in concepts.values()]).attach(base)
    with attachment:
        return {name: character_pictures(averaged, concept.text) for name, concept in concepts.items()}


def _composed(scene: StagedScene, concepts: Mapping[str, Concept], model: Path, output: Path) -> list[Path]:
    """The scene's pictures, one per seed, as `mixshow compose` makes them from the file this writes."""
    options = output / "options" / f"{scene.name}.yml"
    picture = output / "scenes" / f"{scene.name}.png"
    dump(scene_options(scene, concepts, model=model, output=picture, seeds=range(SEEDS_PER_SCENE)), options)
    return compose_file(options)


def _identity(judge: Judge, pictures: Pictures) -> Share:
    images = [image for several in pictures.values() for image in several]
    return identity_share(judge, images, [name for name, several in pictures.items() for _ in several])


def _scene_identity(judge: Judge, scenes: Sequence[StagedScene], files: Mapping[str, Sequence[Path]]) -> Share:
    """Share of regions in which the judge sees the right character."""
    crops: list[Image.Image] = []
    expected: list[str] = []
    for scene in scenes:
        for path in files[scene.name]:
            with Image.open(path) as picture:
                crops += [picture.convert("RGB").crop(box) for box in scene.boxes]
            expected += scene.cast
    return identity_share(judge, crops, expected)
