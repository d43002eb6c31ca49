"""Options of `mixshow fuse`. Paths are relative to the folder the command is run in."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mixshow.config.load import Section, load, option, read_yaml
from mixshow.config.recording import AnchorOptions, StatisticsOptions
from mixshow.config.refine import RefineOptions, template_problems

PUBLISHED: Mapping[str, Any] = {
    "solver": {"name": "lbfgs", "iterations": 500, "spatial_iterations": 50, "precondition": False, "ridge": 0.0},
    "statistics": {
        "collect": "progressive",
        "text_prompts": ["photo of a {concept}", "{concept}"],
        "picture_prompts": ["photo of a {concept}"],
        "text_rows": "concept",
        "weights": "rows",
        "steps": 20,
    },
    "anchor": {"weight": 0.0},
    "refine": {"method": "none"},
}
Method = Literal[
    "solve",
    "sum",
    "average",
    "svd",
    "concatenate",
    "ties",
    "dare",
    "dare_ties",
    "orthogonal",
    "subspace",
    "constrained",
]
SOLVING = ("solve", "constrained", "subspace")  # methods that solve layer by layer on recorded inputs
UNREFINED: Mapping[str, Any] = {"refine": {"method": "none"}}  # methods to compare with are taken as they are


@dataclasses.dataclass(frozen=True)
class ConceptOptions(Section):
    file: Path = option(
        "a concept file of mixshow train or Mix-of-Show, or a network file of kohya, LyCORIS, PEFT, diffusers, ..."
    )
    embedding: Path | None = option("tokens for a network file: a file of textual inversion", None)
    trigger: str | None = option("words by which prompts name it, for a network without tokens: 'sks dog'", None)
    missing_alpha: Literal["error", "rank"] = option(
        "a network file that does not tell its scale: refuse it, or take alpha = rank as most programs do", "error"
    )
    weight: float = option("how much its errors count; only the ratio between concepts matters", 1.0)
    alpha: float = option("strength of its network: scales what it changes, in text encoder and UNet", 1.0)
    text_encoder: float = option("strength of its network on the text encoder", 1.0)
    unet: float = option("strength of its network on the UNet", 1.0)
    tokens: str | None = option("other names for its tokens in the fused model: '<a1> <a2>'; null: as trained", None)
    statistics: Path | None = option("a file of mixshow statistics to use; null: record them", None)

    def problems(self) -> list[str]:
        found = [] if self.weight > 0 else [f"weight: expected more than 0, found {self.weight}"]
        words = (self.tokens or "").replace(",", " ").split()
        if not all(word[0] + word[-1] == "<>" for word in words):
            found.append(f"tokens: expected names such as '<a1> <a2>', found '{self.tokens}'")
        return found


@dataclasses.dataclass(frozen=True)
class SolverOptions(Section):
    name: Literal["lbfgs", "exact", "cg"] = option(
        "lbfgs; exact for the closed form; cg for conjugate gradients", "lbfgs"
    )
    iterations: int = option("most steps of lbfgs or cg in a layer", 500)
    spatial_iterations: int | None = option(
        "the same for the UNet's layers besides keys and values; null: iterations", None
    )
    ridge: float = option(
        "pull of every change to zero, as a share of the mean squared input; less overfits the prompts",
        0.01,
    )
    precondition: bool = option("lbfgs only: start each step from a Cholesky factor, nearly the closed form", True)
    objective: Literal["squares", "huber", "cosine"] = option(
        "what errors count: their squares; huber: single rows far off less; cosine: the outputs' directions", "squares"
    )
    huber_delta: float = option("from which error on huber counts less, in medians of a layer's row errors", 1.0)

    def problems(self) -> list[str]:
        return [
            *([] if self.huber_delta > 0 else [f"huber_delta: expected more than 0, found {self.huber_delta}"]),
            *(
                [f"objective: {self.objective} is minimised by name=lbfgs, found name={self.name}"]
                if self.objective != "squares" and self.name != "lbfgs"
                else []
            ),
            *([] if self.iterations > 0 else [f"iterations: expected at least 1, found {self.iterations}"]),
            *(
                [f"spatial_iterations: expected at least 1 or null, found {self.spatial_iterations}"]
                if self.spatial_iterations is not None and self.spatial_iterations < 1
                else []
            ),
            *([] if self.ridge >= 0 else [f"ridge: expected 0 or more, found {self.ridge}"]),
        ]


@dataclasses.dataclass(frozen=True)
class MergeOptions(Section):
    rank: int | None = option("of method=svd; null: the largest of the concepts' in each layer", None)
    density: float = option("share of the elements that ties and dare keep", 0.5)
    seed: int = option("of the elements that dare keeps", 0)
    prompts: list[str] | None = option(
        "of method=constrained, with {concept}: keys and values of its tokens in them are kept exactly; null: 'photo "
        "of a {concept}'",
        None,
    )

    def problems(self) -> list[str]:
        return [
            *template_problems("prompts", self.prompts),
            *([] if self.rank is None or self.rank > 0 else [f"rank: expected at least 1 or null, found {self.rank}"]),
            *([] if 0 < self.density < 1 else [f"density: expected between 0 and 1, found {self.density}"]),
        ]


@dataclasses.dataclass(frozen=True)
class LoraOptions(Section):
    rank: int | None = option(
        "of the network's layers at most; null: the sum of the concepts' ranks, which loses nothing", None
    )
    energy: float | None = option(
        "no higher rank than keeps this share of the outputs' squared change, 0 to 1; null: all of it", None
    )
    naming: Literal["kohya", "diffusers"] = option("names in the network file for other programs", "kohya")

    def problems(self) -> list[str]:
        return [
            *(
                [f"rank: expected at least 1 or null, found {self.rank}"]
                if self.rank is not None and self.rank < 1
                else []
            ),
            *(
                [f"energy: expected more than 0 and at most 1, or null, found {self.energy}"]
                if self.energy is not None and not 0 < self.energy <= 1
                else []
            ),
        ]


@dataclasses.dataclass(frozen=True)
class ReportOptions(Section):
    heldout: bool = option("compare noise predictions on held-out prompts with each concept's own model", True)
    prompts: list[str] | None = option("held-out prompts with {concept}; null: the built-in list", None)
    captions: list[str] | None = option("held-out ordinary captions; null: the built-in list", None)
    steps: int = option("denoising steps to compare along", 8)
    seed: int = option("of the held-out start noise", 1)

    def problems(self) -> list[str]:
        return [
            *template_problems("prompts", self.prompts),
            *(["captions: expected at least one"] if self.captions == [] else []),
            *([] if self.steps > 0 else [f"steps: expected at least 1, found {self.steps}"]),
        ]


@dataclasses.dataclass(frozen=True)
class FuseOptions(Section):
    base: str = option("'puppets' (built in), a diffusers folder, a hub id or a single file")
    concepts: list[ConceptOptions] | Path = option("the concepts, or a concept list of Mix-of-Show (.json)")
    output: Path = option("the fused model: a folder, or one file whose name ends in .safetensors")
    output_dtype: Literal["fp32", "fp16", "bf16"] = option("of the tensors in a single file; folders have fp32", "fp32")
    format: Literal["folder", "lora"] = option(
        "folder: a whole model, in diffusers' form or as one file (see output); lora: one network file with the "
        "tokens' embeddings",
        "folder",
    )
    lora: LoraOptions = option("the network file of format=lora", factory=LoraOptions)
    preset: Literal["default", "published"] = option(
        "default, or published for Mix-of-Show's rows, order and no ridge", "default"
    )
    method: Method = option(
        "solve: least squares on what layers read; constrained: the same with keys and values of concept tokens kept "
        "exactly; the others are to compare with",
        "solve",
    )
    merge: MergeOptions = option("what the other methods want to know", factory=MergeOptions)
    solver: SolverOptions = option("what minimises each layer's error", factory=SolverOptions)
    statistics: StatisticsOptions = option("what layers' inputs are recorded on", factory=StatisticsOptions)
    anchor: AnchorOptions = option("keeping the base's behaviour", factory=AnchorOptions)
    refine: RefineOptions = option("improving the solved model as a whole", factory=RefineOptions)
    report: ReportOptions = option("what fusion_report.json measures", factory=ReportOptions)
    vae: str | None = option("another place to take the autoencoder from", None)
    device: str = option("auto, cpu, cuda, cuda:1, ...", "auto")

    @property
    def distills_factors(self) -> bool:
        """Whether refining keeps the rank of the solution."""
        wanted = self.format == "lora" if self.refine.low_rank is None else self.refine.low_rank
        return self.refine.method == "distill" and wanted

    @property
    def keeps_metrics(self) -> bool:
        """Whether changes are truncated in the metric of every layer's inputs."""
        return self.lora.rank is not None or self.lora.energy is not None

    @property
    def solves_thin(self) -> bool:
        """Whether solutions of low-rank changes stay factors."""
        return self.method == "solve" and self.solver.objective == "squares"

    @property
    def collects(self) -> Literal["sequential", "independent", "progressive"]:
        """How inputs are collected, where it is left open too."""
        if self.statistics.collect is not None:
            return self.statistics.collect
        at_hand = any(each.statistics is not None for each in self.concepts_listed)
        return "independent" if at_hand or self._solved_apart else "sequential"

    @property
    def _solved_apart(self) -> list[str]:
        """Options with which layers are not solved in sequence."""
        given = {
            f"method={self.method}": self.method != "solve",
            f"solver.objective={self.solver.objective}": self.solver.objective != "squares",
            f"statistics.row_weights={self.statistics.row_weights}": self.statistics.row_weights != "equal",
            f"statistics.shrinkage={self.statistics.shrinkage}": self.statistics.shrinkage > 0,
            "refine.method=rerecord": self.refine.method == "rerecord",
        }
        return [text for text, apart in given.items() if apart]

    @property
    def concepts_listed(self) -> list[ConceptOptions]:
        """The concepts, where they are not in a file of their own."""
        return [] if isinstance(self.concepts, Path) else self.concepts

    def problems(self) -> list[str]:
        found = ["concepts: expected at least one"] if self.concepts == [] else []
        single = self.output.suffix == ".safetensors"
        if not single and self.output.suffix.lower() in (".safetensors", ".ckpt", ".pt", ".pth", ".bin"):
            found.append(f"output: expected a folder, or a file whose name ends in .safetensors, found {self.output}")
        if single and self.format == "lora":
            found.append(f"output: expected a folder for format=lora, found {self.output}; it holds more than one file")
        if not single and self.output_dtype != "fp32":
            found.append(f"output_dtype: {self.output_dtype} is for single files, and output is a folder; leave it out")
        if self.statistics.collect == "progressive":
            given = [f"concepts[{i}]" for i, each in enumerate(self.concepts_listed) if each.statistics is not None]
            given += [] if self.anchor.statistics is None else ["anchor"]
            found += [f"{name}.statistics: is for collect=independent; leave it out" for name in given]
            found += ["statistics.keep: is for collect=independent; leave it out"] if self.statistics.keep else []
        if self.statistics.collect == "sequential" and self._solved_apart:
            found.append(
                f"statistics.collect: sequential does not go with {', '.join(self._solved_apart)}; use independent"
            )
        if self.refine.method == "rerecord" and self.method not in SOLVING:
            found.append(
                f"refine.method: rerecord solves again, which method={self.method} does not; use distill or none"
            )
        if self.method == "constrained" and self.anchor.weight == 0:
            found.append(
                "anchor.weight: expected more than 0 for method=constrained, which changes ordinary captions least"
            )
        if self.method == "subspace" and self.solver.objective != "squares":
            found.append(
                f"solver.objective: {self.solver.objective} is for method=solve or constrained, found method=subspace, "
                "which solves by squares; leave it out"
            )
        if self.statistics.row_weights != "equal" and self.solver.objective != "squares":
            found.append(
                f"statistics.row_weights: sensitivity is for solver.objective=squares, found {self.solver.objective}"
            )
        if self.format != "lora" and self.lora != LoraOptions():
            found.append("lora: its options are for format=lora; leave them out")
        if self.refine.low_rank and self.refine.method != "distill":
            found.append(f"refine.low_rank: is for refine.method=distill, found {self.refine.method}; leave it out")
        return found


def load_fuse_options(path: Path | str, overrides: Sequence[str] = ()) -> FuseOptions:
    """Read an options file; its preset and method give the defaults, what the file or an override says wins.

    Raises:
        OptionsError: everything that is wrong with the file, together.
        MixshowError: the file cannot be read.
    """
    values = read_yaml(path)
    options = load(FuseOptions, path, overrides, values=values)
    defaults = PUBLISHED if options.preset == "published" else {}
    if options.method != "solve":
        defaults = {**defaults, **UNREFINED}
    return load(FuseOptions, path, overrides, values=_merged(defaults, values)) if defaults else options


def _merged(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(defaults))
    for key, value in values.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
