"""The built-in base measured: autoencoder, prompts, pose adapter, judge; the figures of its model card."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.core.files import write_json
from mixshow.core.progress import log, tracked
from mixshow.evaluation.identity import confusion, identity_share
from mixshow.evaluation.interval import Share, share_of
from mixshow.evaluation.page import markdown_table
from mixshow.evaluation.psnr import psnr
from mixshow.models.base import Base, load_base
from mixshow.puppets.backgrounds import PLACES
from mixshow.puppets.captions import describe
from mixshow.puppets.cast import CAST, cast_scene, near_miss, write_cast
from mixshow.puppets.judge import ATTRIBUTES, NOBODY, Judge
from mixshow.puppets.keypoints import POINT_ROWS, POINTS, KeypointFinder
from mixshow.puppets.world import SQUARE, WIDE, WORLD_VERSION, Scene, sample_scene
from mixshow.sampling.conditions import adapter_condition, load_adapter
from mixshow.sampling.generate import sample, to_pictures
from mixshow.sampling.pose import draw_openpose

# Scene numbers of the evaluation; training draws from other data sets of the world.
EVALUATION_SEED = 90_001
GUIDANCES = (3.0, 5.0, 7.0)
_BATCH = 16


def cast(folder: Path, *, names: Sequence[str] | None = None, pictures: int = 14) -> None:
    """Write the cast's training pictures, masks and captions.

    Raises:
        MixshowError: no cast member of that name, or fewer than one picture.
    """
    unknown = [name for name in names or () if name not in CAST]
    if unknown:
        raise MixshowError(f"cast member '{unknown[0]}': unknown{did_you_mean(unknown[0], CAST)}")
    if pictures < 1:
        raise MixshowError(f"--pictures: expected at least 1, found {pictures}")
    for name, paths in write_cast(folder, names, pictures).items():
        log.info(f"{name}: {len(paths)} pictures in {paths[0].parent.parent}")


def evaluate(output: Path, *, samples: int = 400, seed: int = 0) -> dict[str, Any]:
    """Measure the built-in base and write the figures; prints them as tables.

    Args:
        samples: pictures of the prompt figures; the other figures take shares of it.
        seed: first seed of the sampled pictures.
    """
    started = time.perf_counter()
    base, judge, finder = load_base("puppets"), Judge.load(), KeypointFinder.load()
    report: dict[str, Any] = {"world_version": WORLD_VERSION, "samples": samples, "seed": seed}
    report["autoencoder_psnr_db"] = autoencoder_psnr(base, max(8, samples // 4))
    report["judge"] = judge_quality(base, judge, max(2, samples // 8))
    report["prompts"] = prompt_following(base, judge, samples, seed)
    report["pose"] = pose_following(base, finder, max(8, samples // 4), seed)
    report["seconds"] = round(time.perf_counter() - started, 1)
    write_json(output, report)
    print(summary(report))
    log.info(f"written: {output}")
    return report


@torch.no_grad()
def through_autoencoder(base: Base, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures encoded and decoded again."""
    results: list[Image.Image] = []
    for start in range(0, len(pictures), _BATCH):
        values = _tensor(pictures[start : start + _BATCH])
        results += to_pictures(base.decode_latents(base.encode_images(values)))
    return results


def _tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    values = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(values).permute(0, 3, 1, 2) / 127.5 - 1


@torch.no_grad()
def autoencoder_psnr(base: Base, count: int) -> dict[str, float]:
    """Mean PSNR on held-out renders, of the base world and of the cast."""
    names = list(CAST)
    sets = {
        "square": [sample_scene(EVALUATION_SEED, i, SQUARE).render() for i in range(count)],
        "wide": [sample_scene(EVALUATION_SEED, i, WIDE).render() for i in range(count)],
        "cast": [cast_scene(names[i % len(names)], i, EVALUATION_SEED).render() for i in range(count)],
    }
    figures = {}
    for name, pictures in sets.items():
        again = through_autoencoder(base, pictures)
        figures[name] = round(float(psnr(_tensor(again), _tensor(pictures)).mean()), 2)
    return figures


def judge_accuracy(base: Base, judge: Judge, per_class: int = 12) -> Share:
    """How often the judge is right on held-out renders through the autoencoder, cast and near-misses together."""
    expected, pictures = [], []
    for name in CAST:
        pictures += [cast_scene(name, i, EVALUATION_SEED + 4).render() for i in range(per_class)]
        pictures += [
            sample_scene(EVALUATION_SEED + 5, i, SQUARE, looks=[near_miss(name)]).render() for i in range(per_class)
        ]
        expected += [name] * per_class + [NOBODY] * per_class
    return identity_share(judge, through_autoencoder(base, pictures), expected)


def judge_quality(base: Base, judge: Judge, per_class: int) -> dict[str, Any]:
    """The judge on held-out renders passed through the autoencoder: the cast, near-misses, the plain world."""
    expected, seen = [], []
    for name in CAST:
        pictures = [cast_scene(name, i, EVALUATION_SEED).render() for i in range(per_class)]
        expected += [name] * per_class
        seen += judge.identities(through_autoencoder(base, pictures))
    plain = [sample_scene(EVALUATION_SEED, i, SQUARE, count=1) for i in range(4 * per_class)]
    seen_plain = judge.identities(through_autoencoder(base, [scene.render() for scene in plain]))
    near = [
        sample_scene(EVALUATION_SEED + 1, i, SQUARE, looks=[near_miss(name)]).render()
        for name in CAST
        for i in range(per_class)
    ]
    seen_near = judge.identities(through_autoencoder(base, near))
    attributes = judge.attributes([scene.render() for scene in plain])
    return {
        "cast_right": share_of([a == b for a, b in zip(seen, expected)]).to_json(),
        "plain_none": share_of([name == NOBODY for name in seen_plain]).to_json(),
        "near_miss_none": share_of([name == NOBODY for name in seen_near]).to_json(),
        "attributes_right": {
            key: share_of([found[key] == _asked(scene)[key] for found, scene in zip(attributes, plain)]).to_json()
            for key in ATTRIBUTES
        },
        "confusion": {
            "columns": [*CAST, NOBODY],
            "rows": confusion(seen + seen_plain, expected + [NOBODY] * len(plain), [*CAST, NOBODY])
            + [["near-miss", *(seen_near.count(name) for name in [*CAST, NOBODY])]],
        },
    }


def _asked(scene: Scene) -> dict[str, str]:
    """The attributes of a scene with one puppet."""
    look = scene.puppets[0].look
    values = {"kind": look.kind, "hair": look.hair, "shirt": look.shirt, "trousers": look.trousers}
    return {**values, "background": scene.background}


def prompt_following(base: Base, judge: Judge, samples: int, seed: int) -> dict[str, Any]:
    """Plain prompts naming every attribute: how often the judge recognises each, by guidance and together."""
    scenes = [sample_scene(EVALUATION_SEED + 2, i, SQUARE, count=1) for i in range(samples)]
    prompts = [f"a photo of {describe(scene.puppets[0].look)}, {PLACES[scene.background]}" for scene in scenes]
    right: dict[str, list[bool]] = {key: [] for key in (*ATTRIBUTES, "all")}
    by_guidance: dict[float, list[bool]] = {guidance: [] for guidance in GUIDANCES}
    for start in tracked(range(0, samples, _BATCH), "prompts"):
        guidance = GUIDANCES[start // _BATCH % len(GUIDANCES)]
        rows = range(start, min(start + _BATCH, samples))
        pictures = sample(base, [prompts[i] for i in rows], seeds=[seed + i for i in rows], guidance=guidance)
        for i, found in zip(rows, judge.attributes(pictures)):
            hits = {key: found[key] == value for key, value in _asked(scenes[i]).items()}
            for key, hit in hits.items():
                right[key].append(hit)
            right["all"].append(all(hits.values()))
            by_guidance[guidance].append(all(hits.values()))
    return {
        **{key: share_of(hits).to_json() for key, hits in right.items()},
        "all_by_guidance": {str(key): share_of(hits).to_json() for key, hits in by_guidance.items() if hits},
    }


def pose_following(base: Base, finder: KeypointFinder, samples: int, seed: int) -> dict[str, Any]:
    """Distance between asked and found head, hands and feet, as a share of the puppet's height."""
    adapter = load_adapter("puppets", base)
    scenes = [sample_scene(EVALUATION_SEED + 3, i, SQUARE, count=1) for i in range(samples)]
    renders = through_autoencoder(base, [scene.render() for scene in scenes])
    distances = {"finder_itself": _distances(finder, renders, scenes)}
    for name in ("with_adapter", "without_adapter"):
        pictures = []
        for start in tracked(range(0, samples, _BATCH), f"pose, {name.replace('_', ' ')}"):
            chosen = scenes[start : start + _BATCH]
            condition = None
            if name == "with_adapter":
                poses = [draw_openpose(scene.people, SQUARE) for scene in chosen]
                condition = adapter_condition(adapter, poses)
            prompts = [f"a photo of {describe(scene.puppets[0].look)}" for scene in chosen]
            seeds = [seed + start + i for i in range(len(chosen))]
            pictures += sample(base, prompts, seeds=seeds, guidance=5.0, condition=condition)
        distances[name] = _distances(finder, pictures, scenes)
    return {
        name: {
            "mean_percent_of_height": round(100 * float(values.mean()), 2),
            "interval_95": [round(100 * float(end), 2) for end in _mean_interval(values.mean(1))],
            "by_point": {point: round(100 * float(v), 2) for point, v in zip(POINTS, values.mean(0))},
        }
        for name, values in distances.items()
    } | {"pictures": samples}


def _distances(finder: KeypointFinder, pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> np.ndarray:
    """`[pictures, points]` distances in puppet heights."""
    asked = np.stack([scene.puppets[0].keypoints[list(POINT_ROWS), :2] for scene in scenes])
    heights = np.array([scene.puppets[0].height for scene in scenes])
    return np.linalg.norm(finder.find(pictures) - asked, axis=-1) / heights[:, None]


def _mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over pictures, by the normal approximation."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def summary(report: dict[str, Any]) -> str:
    """The figures as tables with their bars."""
    judge, prompts, pose = report["judge"], report["prompts"], report["pose"]
    psnr_db = report["autoencoder_psnr_db"]
    rows: list[list[object]] = [
        [f"autoencoder PSNR, {name} (dB)", "32", f"{value:.2f}"] for name, value in psnr_db.items()
    ]
    rows += [[f"prompt: {key} (%)", "90", _percent(prompts[key])] for key in ATTRIBUTES]
    rows += [["prompt: all five (%)", "-", _percent(prompts["all"])]]
    rows += [
        [f"pose, {name.replace('_', ' ')} (% of height)", "8" if name == "with_adapter" else "-", _mean(pose[name])]
        for name in ("with_adapter", "without_adapter", "finder_itself")
    ]
    rows += [
        ["judge: cast right (%)", "97", _percent(judge["cast_right"])],
        ["judge: near-misses none (%)", "95", _percent(judge["near_miss_none"])],
        ["judge: plain world none (%)", "95", _percent(judge["plain_none"])],
    ]
    rows += [[f"judge: {key} right (%)", "-", _percent(judge["attributes_right"][key])] for key in ATTRIBUTES]
    table = judge["confusion"]
    return "\n\n".join(
        (
            markdown_table(["figure", "bar", "measured (95 % interval)"], rows),
            markdown_table(["shown \\ seen", *table["columns"]], table["rows"]),
        )
    )


def _percent(share: dict[str, Any]) -> str:
    return str(Share(share["hits"], share["trials"]))


def _mean(figure: dict[str, Any]) -> str:
    low, high = figure["interval_95"]
    return f"{figure['mean_percent_of_height']:.2f} ({low:.2f}-{high:.2f})"
