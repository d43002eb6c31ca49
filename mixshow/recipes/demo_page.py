"""The demo's report page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from mixshow.evaluation.interval import Share
from mixshow.evaluation.page import Page
from mixshow.puppets.world import WIDE
from mixshow.recipes.stage_plan import StagedScene
from mixshow.sampling.pictures import picture_grid
from mixshow.sampling.pose import draw_openpose

_WAYS = {
    "class_word": "the class word alone, on the base (the floor)",
    "single": "one character's own model",
    "weight_average": "plain average of the three networks",
    "fused": "the fused model",
    "scene": "the fused model, in the regions of three-character scenes",
}
_BOX_COLOURS = ("#ff5050", "#50c8ff", "#ffd040")


def write_page(
    path: Path,
    report: Mapping[str, Any],
    *,
    folder: Path,
    names: Sequence[str],
    pictures: Mapping[str, Mapping[str, Sequence[Image.Image]]],
    scenes: Sequence[StagedScene],
    files: Mapping[str, Sequence[Path]],
) -> None:
    """Write the page: one file, pictures inside.

    Args:
        folder: the demo's, for cast pictures and training grids.
        pictures: by way of making them, then by character.
        files: pictures of each scene.
    """
    page = Page("mixshow: three characters, one picture")
    page.paragraph(
        f"{', '.join(names[:-1])} and {names[-1]} were trained separately, fused into one model and put on stage on "
        "the built-in base. Every score is a judge network's, which was trained on rendered puppets only."
    )
    page.heading("Scenes")
    page.paragraph(
        "Left: the skeletons and boxes that were asked for. Right: what the fused model made, one picture per seed."
    )
    for scene in scenes:
        images = [layout_picture(scene), *(_opened(file) for file in files[scene.name])]
        page.picture(picture_grid(images, len(images)), f"{scene.background}: {', '.join(scene.cast)}")
    page.heading("Scores")
    shares = report["intervals"]
    rows = [[text, str(Share(shares[way]["hits"], shares[way]["trials"]))] for way, text in _WAYS.items()]
    page.table(["the judge sees the right character in", "share (95 % interval)"], rows)
    accuracy = shares["judge_accuracy"]
    page.paragraph(
        f"The judge itself is right on {Share(accuracy['hits'], accuracy['trials'])} of held-out renders of the cast, "
        "near-misses included."
    )
    page.heading("The characters")
    for name in names:
        shown = [_opened(file) for file in sorted((folder / "cast" / name / "image").glob("*.png"))[:8]]
        page.picture(picture_grid(shown, len(shown)), f"{name}: training pictures")
    for way in ("single", "fused", "weight_average", "class_word"):
        page.heading(_WAYS[way][0].upper() + _WAYS[way][1:])
        for name in names:
            page.picture(picture_grid(pictures[way][name][:12], 6), name)
    page.heading("Training grids")
    page.paragraph("Rows: strengths of the network (0: embeddings alone).")
    for name in names:
        grids = sorted((folder / name / "grids").glob("*.png"))
        if grids:
            page.picture(_opened(grids[-1]), f"{name}, {grids[-1].stem.replace('_', ' ')}")
    page.heading("Times")
    page.table(["stage", "seconds"], list(report["seconds"].items()))
    page.paragraph(f"Peak memory {report['peak_memory_gb']} GB. Machine: {report['machine']}")
    page.write(path)


def layout_picture(scene: StagedScene) -> Image.Image:
    """The scene's skeletons with its boxes drawn over them."""
    picture = draw_openpose(scene.people, WIDE)
    draw = ImageDraw.Draw(picture)
    for box, name, colour in zip(scene.boxes, scene.cast, _BOX_COLOURS):
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=colour)
        draw.text((box[0] + 3, box[1] + 1), name, fill=colour)
    return picture


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")
