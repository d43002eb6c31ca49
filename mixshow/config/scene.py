"""Options of a scene: `mixshow compose SCENE.yml`. Paths are relative to the folder the command is run in."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

from mixshow.config.condition import ConditionOptions
from mixshow.config.isolation import IsolateOptions
from mixshow.config.load import Section, option
from mixshow.config.network import NetworkOptions
from mixshow.config.passes import DetailOptions, HiresOptions, ImageOptions
from mixshow.config.pose import PoseOptions
from mixshow.config.region import RegionOptions
from mixshow.config.seeds import parse_seeds
from mixshow.core.errors import MixshowError

_CELLS = re.compile(r"[\d.,:;\s]*\d[\d.,:;\s]*")  # a layout that is no file


@dataclasses.dataclass(frozen=True)
class SceneOptions(Section):
    prompt: str = option("the whole picture; what no region covers follows it")
    output: Path = option("PNG to write; with several seeds NAME_seedN.png")
    model: str = option("a fused model's or diffusers folder, a hub id, a single file, or 'puppets'", "puppets")
    vae: str | None = option("another place to take the autoencoder from", None)
    concepts: list[Path] = option("concept files to attach to the model", factory=list)
    strengths: list[float] | None = option("one factor per concept on its network; null: 1", None)
    concept_networks: Literal["everywhere", "regions"] = option(
        "where the networks of 'concepts' act: everywhere, or only in the regions that name the concept", "everywhere"
    )
    networks: list[NetworkOptions] = option("network files that change the model beside the concepts", factory=list)
    merge_networks: bool = option("put 'networks' into the model's weights instead of attaching them", False)
    size: tuple[int, int] | None = option(
        "[width, height] in pixels; null: the model's native square, without regions and pose", None
    )
    base_prompt: str | None = option("what regions' base ratios follow; null: the prompt", None)
    background_prompt: str | None = option("what places that no region covers follow; null: the prompt", None)
    common_prompt: str | None = option(
        "put before every region's prompt; with {prompt} in it, around it: 'a drawing of {prompt}, in ink'", None
    )
    negative_prompt: str = option("what the picture should not show", "")
    common_negative: str | None = option("put behind every negative prompt, the scene's and the regions'", None)
    prompt_weights: bool = option("(words:1.3), (words), [words] and BREAK mean something; false: they are text", True)
    long_prompts: Literal["windows", "cut"] = option(
        "what does not fit the text encoder's window: read in further ones, or cut, as published", "windows"
    )
    clip_skip: int = option("last layers that the text encoders leave out, beyond what the model itself does", 0)
    region_schedule: list[tuple[float, float]] = option(
        "[[from, factor], ...]: from which part of the steps on regions' prompts count by which factor, 0.0 to 1.0; "
        "the base prompt has the rest",
        factory=list,
    )
    pose: PoseOptions | None = option("where people stand and how; null: free", None)
    conditions: list[ConditionOptions] = option("pictures that guide the layout, beside the pose", factory=list)
    boxes: Literal["from_pose"] | None = option(
        "regions without a shape get boxes around the pose's people: the one a region or its concept names, the others "
        "in order",
        None,
    )
    regions: list[RegionOptions] = option("parts of the picture with their own prompts", factory=list)
    rewrite: str | None = option(
        "regions as Mix-of-Show writes them: [prompt]-*-[negative]-*-[top, left, bottom, right]|...", None
    )
    layout: str | None = option(
        "rows and columns for the regions, such as '1,2,1; 1' or '2: 1,1; 1' (a row twice as high); or a layout file "
        "of Mix-of-Show (box1='[top, left, bottom, right]' ...), which has regions of its own",
        None,
    )
    masks: Path | None = option("a colour-coded picture of all regions that name a 'colour'", None)
    edges: Literal["hard", "soft"] | None = option(
        "how a region ends in coarse layers: only positions wholly inside (hard, as published), or by the share that "
        "is inside (soft); null: hard when every region names a box and no feather, otherwise soft",
        None,
    )
    isolate: IsolateOptions | None = option("keeps regions apart in self-attention; null: they see each other", None)
    guard: bool = option("regions' concept tokens are attended to from their regions only, in every prompt", False)
    image: ImageOptions | None = option("a picture to begin from, in all of it or in some regions; null: noise", None)
    hires: HiresOptions | None = option("a second, larger pass over each picture; null: none", None)
    detail: DetailOptions | None = option("makes every region once more, alone and enlarged; null: does not", None)
    seeds: tuple[int | str, ...] | int | str = option("one picture per seed: 0-15, or [1, 5, 7-9]", (0,))
    batch_size: int = option("pictures denoised together; more need more memory", 1)
    steps: int = option("denoising steps", 25)
    guidance: float = option("classifier-free guidance; 1: none", 7.5)
    cfg_rescale: float = option("how far guidance is brought back to the contrast of the plain prediction, 0 to 1", 0.0)
    scheduler: str = option("a scheduler class of diffusers", "DPMSolverMultistepScheduler")
    scheduler_options: dict[str, Any] = option("options of that scheduler", factory=dict)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("number type of the UNet's arithmetic", "auto")
    device: str = option("'auto', 'cpu', 'cuda', 'cuda:1', ...", "auto")
    grid: bool = option("with several seeds also write NAME_grid.png", False)
    previews: int = option("every so many steps write how far the pictures are to NAME_running.png; 0: never", 0)
    sheet: bool = option("also write all pictures with their options to NAME.html", False)

    @property
    def seed_list(self) -> list[int]:
        """`seeds`, each by itself.

        Raises:
            MixshowError: not numbers and ranges.
        """
        return parse_seeds(self.seeds)

    @property
    def cells(self) -> str | None:
        """`layout`, when it is rows and columns."""
        return self.layout if self.layout and _CELLS.fullmatch(self.layout) else None

    @property
    def layout_file(self) -> Path | None:
        """`layout`, when it is a file."""
        return Path(self.layout).expanduser() if self.layout and not self.cells else None

    @property
    def region_source(self) -> str:
        """The option its regions are in."""
        return "rewrite" if self.rewrite else "layout" if self.layout_file else "regions"

    def problems(self) -> list[str]:
        found = self._region_problems()
        sources = self._region_sources()
        if self.strengths is not None and len(self.strengths) != len(self.concepts):
            found.append(f"strengths: expected one per concept ({len(self.concepts)}), found {len(self.strengths)}")
        if self.size is None and (sources or self.pose or self.conditions or self.image or self.hires):
            found.append(
                "size: expected [width, height] in pixels, which a scene with regions, a pose, conditions, an image or "
                "a second pass needs; found none"
            )
        there = len(self.conditions) + (self.pose is not None)
        found += [
            f"regions[{i}].condition_weights: expected one for each of {there} conditions (the pose is the last), "
            f"found {len(region.condition_weights)}"
            for i, region in enumerate(self.regions)
            if len(region.condition_weights) > there
        ]
        if self.size is not None and min(self.size) <= 0:
            found.append(f"size: expected [width, height] in pixels, found {list(self.size)}")
        found += self._seed_problems()
        found += [
            f"{name}: expected 1 or more, found {value}"
            for name, value in (
                ("batch_size", self.batch_size),
                ("steps", self.steps),
                ("guidance", self.guidance),
            )
            if value < 1
        ]
        if self.previews < 0:
            found.append(f"previews: expected 0 or more steps, found {self.previews}")
        if self.image is not None and self.image.redo and not sources:
            found.append("image.redo: expected regions in the scene, found none")
        if not 0 <= self.cfg_rescale <= 1:
            found.append(f"cfg_rescale: expected 0 to 1, found {self.cfg_rescale}")
        if self.clip_skip < 0:
            found.append(f"clip_skip: expected 0 or more layers, found {self.clip_skip}")
        if self.output.suffix.lower() != ".png":
            found.append(f"output: expected a .png file, found '{self.output}'")
        return found

    def _seed_problems(self) -> list[str]:
        try:
            seeds = self.seed_list
        except MixshowError as error:
            return [f"seeds: {error}"]
        if not seeds:
            return ["seeds: expected at least one, found none"]
        if len(set(seeds)) < len(seeds):
            return [f"seeds: expected different ones, found {seeds}"]
        return []

    def _region_sources(self) -> list[str]:
        given = {"regions": self.regions, "rewrite": self.rewrite, "layout": self.layout_file}
        return [name for name, value in given.items() if value]

    def _region_problems(self) -> list[str]:
        found = []
        sources = self._region_sources()
        if len(sources) > 1:
            found.append(f"{sources[1]}: expected regions from one place, found {' and '.join(sources)}")
        for i, region in enumerate(self.regions):
            shape = region.shape
            if self.cells and shape:
                found.append(f"regions[{i}].{shape}: expected no shape beside the scene's layout '{self.cells}'")
            elif shape is None and not self.cells and not self.boxes:
                found.append(
                    f"regions[{i}]: expected one of box, polygon, mask, colour (in quotes), person and from: "
                    "attention, or a layout or boxes: from_pose for all regions; found none"
                )
            elif shape == "colour" and self.masks is None:
                found.append(f"regions[{i}].colour: expected a colour-coded picture in 'masks', found none")
            if region.feather and self.edges == "hard":
                found.append(f"regions[{i}].feather: expected edges: soft, which a feather needs, found hard")
        found += self._box_problems()
        after = sorted({region.after for region in self.regions if region.from_})
        if len(after) > 1:
            found.append(f"regions: expected one number of steps in the 'after' of all regions, found {after}")
        if after and after[-1] >= self.steps:
            found.append(f"regions: expected an 'after' below the {self.steps} steps of the scene, found {after[-1]}")
        beside = [name for name in ("image", "hires", "detail") if getattr(self, name)]
        if after and beside:
            found.append(f"regions: expected areas beside '{beside[0]}', found from: attention")
        if self.masks is not None and not any(region.colour for region in self.regions):
            found.append("masks: expected regions that name a 'colour' of it, found none")
        alone = ("base_prompt", "background_prompt", "common_prompt", "region_schedule", "isolate", "guard")
        found += [
            f"{name}: expected regions, without which it says nothing; found none"
            for name in alone
            if getattr(self, name) and not sources
        ]
        if self.concept_networks == "regions" and not (self.concepts and sources):
            found.append("concept_networks: expected 'concepts' and regions to direct them to, found none")
        starts = [start for start, _ in self.region_schedule]
        if any(not (0 <= start < 1 and 0 <= factor <= 1) for start, factor in self.region_schedule):
            found.append(
                "region_schedule: expected pairs such as [[0.0, 1.0], [0.6, 0.5]] of parts of the steps and factors, "
                f"found {[list(pair) for pair in self.region_schedule]}"
            )
        if len(set(starts)) < len(starts):
            found.append(f"region_schedule: expected one factor for each part of the steps, found {starts}")
        if self.cells and not self.regions:
            found.append(f"layout: expected regions for the cells of '{self.cells}', found none")
        return found

    def _box_problems(self) -> list[str]:
        """What is wrong with boxes from the pose."""
        persons = [f"regions[{i}].person" for i, region in enumerate(self.regions) if region.person is not None]
        asking = ["boxes", *persons] if self.boxes else persons
        if not asking:
            return []
        if self.pose is None or not self.pose.has_points:
            expected = "expected a pose with key points (people, json or photo)"
            return [f"{asking[0]}: {expected}, found {'none' if self.pose is None else 'only a drawn picture'}"]
        if self.boxes and not self.regions:
            return ["boxes: expected regions, which people's boxes are for; found none"]
        if self.boxes and self.cells:
            return [f"boxes: expected no boxes from the pose beside the layout '{self.cells}'"]
        return []
