"""Options of a scene: `mixshow compose SCENE.yml`. Paths are relative to the folder the command is run in."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from mixshow.config.load import Section, option

Point = list[float]


@dataclasses.dataclass(frozen=True)
class RegionOptions(Section):
    box: tuple[float, float, float, float] = option(
        "[left, top, right, bottom]: fractions of the picture when none is above 1, otherwise pixels"
    )
    prompt: str = option("what is in the region")
    negative_prompt: str | None = option("what is not; null: the scene's negative prompt", None)
    base_ratio: float = option("part of the attention that stays with the scene's prompt, 0 to 1", 0.0)

    def problems(self) -> list[str]:
        left, top, right, bottom = self.box
        found = []
        if right <= left or bottom <= top:
            found.append(f"box: expected left < right and top < bottom, found no area in {list(self.box)}")
        if max(self.box) > 1 and not all(float(number).is_integer() for number in self.box):
            found.append(f"box: expected fractions from 0 to 1, or whole numbers of pixels, found {list(self.box)}")
        if min(self.box) < 0:
            found.append(f"box: {list(self.box)} is not inside the picture; expected no negative numbers")
        if not 0 <= self.base_ratio <= 1:
            found.append(f"base_ratio: expected 0 to 1, found {self.base_ratio}")
        return found


@dataclasses.dataclass(frozen=True)
class PoseOptions(Section):
    """Where the people stand: exactly one of `image`, `json`, `people` and `png`."""

    image: Path | None = option("an OpenPose picture; scaled to fit the scene", None)
    json: Path | None = option("OpenPose JSON, or a PNG that carries key points; scaled to fit the scene", None)
    people: list[list[Point | None]] | None = option(
        "for each person 18 COCO points [x, y] or [x, y, visible], null where not seen; fractions when none is above 1",
        None,
    )
    png: str | None = option("an OpenPose picture in base64, as pictures that mixshow made carry it", None)
    adapter: str = option("'puppets', a folder or a hub id of a T2I-Adapter for poses", "puppets")
    weight: float = option("factor on the adapter's features; 0: without", 1.0)
    span: tuple[float, float] = option("part of the steps in which it counts, 0.0 to 1.0", (0.0, 1.0))

    def problems(self) -> list[str]:
        given = [name for name in ("image", "json", "people", "png") if getattr(self, name) is not None]
        found = []
        if len(given) != 1:
            found.append(f"expected one of image, json and people, found {' and '.join(given) or 'none'}")
        if self.people is not None and not self.people:
            found.append("people: expected at least one person, found none; leave pose out for a scene without")
        if not 0 <= self.span[0] < self.span[1] <= 1:
            found.append(f"span: expected two numbers such as [0.0, 0.6], found {list(self.span)}")
        return found


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Section):
    file: Path = option("a network file of any algorithm, of kohya's programs, LyCORIS or this one")
    strength: float = option("factor on its change; 0: none", 1.0)
    missing_alpha: Literal["error", "rank"] = option(
        "a file that does not tell its scale: refuse it, or take alpha = rank as most programs do", "error"
    )

    def problems(self) -> list[str]:
        return (
            [] if math.isfinite(self.strength) else [f"strength: expected a number such as 0.8, found {self.strength}"]
        )


@dataclasses.dataclass(frozen=True)
class SceneOptions(Section):
    prompt: str = option("the whole picture; what no region covers follows it")
    output: Path = option("PNG to write; with several seeds NAME_seedN.png")
    model: str = option("a fused model's or diffusers folder, a hub id, a single file, or 'puppets'", "puppets")
    vae: str | None = option("another place to take the autoencoder from", None)
    concepts: list[Path] = option("concept files to attach to the model", factory=list)
    strengths: list[float] | None = option("one factor per concept on its network; null: 1", None)
    networks: list[NetworkOptions] = option("network files that change the model beside the concepts", factory=list)
    merge_networks: bool = option("put 'networks' into the model's weights instead of attaching them", False)
    size: tuple[int, int] | None = option(
        "[width, height] in pixels; null: the model's native square, without regions and pose", None
    )
    negative_prompt: str = option("what the picture should not show", "")
    pose: PoseOptions | None = option("where people stand and how; null: free", None)
    regions: list[RegionOptions] = option("parts of the picture with their own prompts", factory=list)
    rewrite: str | None = option(
        "regions as Mix-of-Show writes them: [prompt]-*-[negative]-*-[top, left, bottom, right]|...", None
    )
    layout: Path | None = option(
        "regions from a layout file of Mix-of-Show (box1='[top, left, bottom, right]' ...)", None
    )
    edges: Literal["hard", "soft"] = option(
        "how a box ends in coarse layers: only positions wholly inside, or by the share that is inside",
        "hard",
    )
    seeds: list[int] = option("one picture per seed", factory=lambda: [0])
    batch_size: int = option("pictures denoised together; more need more memory", 1)
    steps: int = option("denoising steps", 25)
    guidance: float = option("classifier-free guidance; 1: none", 7.5)
    scheduler: str = option("a scheduler class of diffusers", "DPMSolverMultistepScheduler")
    scheduler_options: dict[str, Any] = option("options of that scheduler", factory=dict)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("number type of the UNet's arithmetic", "auto")
    device: str = option("'auto', 'cpu', 'cuda', 'cuda:1', ...", "auto")
    grid: bool = option("with several seeds also write NAME_grid.png", False)

    def problems(self) -> list[str]:
        found = []
        sources = [name for name in ("regions", "rewrite", "layout") if getattr(self, name)]
        if len(sources) > 1:
            found.append(f"{sources[1]}: expected regions from one place, found {' and '.join(sources)}")
        if self.strengths is not None and len(self.strengths) != len(self.concepts):
            found.append(f"strengths: expected one per concept ({len(self.concepts)}), found {len(self.strengths)}")
        if self.size is None and (sources or self.pose):
            found.append(
                "size: expected [width, height] in pixels, which a scene with regions or a pose needs; found none"
            )
        if self.size is not None and min(self.size) <= 0:
            found.append(f"size: expected [width, height] in pixels, found {list(self.size)}")
        if not self.seeds:
            found.append("seeds: expected at least one, found none")
        if len(set(self.seeds)) < len(self.seeds):
            found.append(f"seeds: expected different ones, found {self.seeds}")
        found += [
            f"{name}: expected 1 or more, found {value}"
            for name, value in (
                ("batch_size", self.batch_size),
                ("steps", self.steps),
                ("guidance", self.guidance),
            )
            if value < 1
        ]
        if self.output.suffix.lower() != ".png":
            found.append(f"output: expected a .png file, found '{self.output}'")
        return found
