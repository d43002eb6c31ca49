"""What `mixshow fuse` writes: a whole model, as a folder or one file, or a network file with the tokens' embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mixshow.config.fuse import FuseOptions, LoraOptions
from mixshow.core.errors import MixshowError
from mixshow.core.progress import log
from mixshow.fusion.factors import Factors, as_low_rank, loss_report
from mixshow.fusion.fusion import Fusion
from mixshow.fusion.layers import layers_of
from mixshow.fusion.lora_folder import CONCEPT_FILE, EMBEDDINGS_FILE, NETWORK_FILE, save_lora_folder
from mixshow.fusion.members import Member
from mixshow.fusion.report import REPORT_FILE
from mixshow.fusion.statistics import is_elementwise
from mixshow.fusion.statistics_file import KEPT
from mixshow.models import Base, save_base
from mixshow.models.base import CONCEPT_CONFIG, extra_file, is_single_file
from mixshow.models.checkpoint_write import single_file_problem
from mixshow.models.folder import MODEL_INDEX, pipeline_index

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_format(base: Base, member: Member, options: FuseOptions) -> None:
    """Raises MixshowError when the output, or factors that are distilled, cannot hold what a concept changes."""
    if options.format != "lora" and not options.distills_factors:
        return
    what = "format=lora" if options.format == "lora" else "refine.low_rank=true"
    name = member.concept.source or member.concept.text
    modules = {layer.path: layer.module for layer in layers_of(base).values()}
    directions = member.output_directions(base)
    others = sorted(member.changed_biases(base) | {path for path in directions if is_elementwise(modules[path])})
    if others:
        raise MixshowError(
            f"{name}: changes biases or normalisations ({len(others)} layers, "
            f"such as '{others[0]}'), which {what} cannot hold; "
            f"{'use format=folder' if options.format == 'lora' else 'leave it out'}"
        )
    whole = [path for path, own in directions.items() if own is None]
    if options.format == "lora" and whole and options.lora.rank is None and options.lora.energy is None:
        raise MixshowError(
            f"{name}: {len(whole)} of its {len(directions)} changes have no low "
            f"rank, such as '{whole[0]}'; give lora.rank or lora.energy"
        )


def output_problems(base: Base | None, options: FuseOptions) -> list[str]:
    """Why the output cannot be written, one sentence each.

    Args:
        base: None where it could not be loaded.
    """
    problems = [*_full_rank_problems(options), *_place_problems(options)]
    problems += [*_lost_statistics(options), *_lost_inputs(options)]
    if base is not None and is_single_file(options.output) and (problem := single_file_problem(base)):
        problems.append(f"output: {problem}")
    return problems


def _lost_statistics(options: FuseOptions) -> list[str]:
    """Files of statistics in the folder that the output replaces."""
    if options.statistics.keep or isinstance(options.concepts, Path):
        return []
    given = {f"concepts[{i}]": entry.statistics for i, entry in enumerate(options.concepts)}
    inside = [
        name
        for name, file in {**given, "anchor": options.anchor.statistics}.items()
        if file is not None and options.output.resolve() in file.resolve().parents
    ]
    return [
        f"{name}.statistics: expected a file outside of the output, which is replaced; give statistics.keep=true, or "
        "another output"
        for name in inside
    ]


def _lost_inputs(options: FuseOptions) -> list[str]:
    """What is fused, where it is in the folder that the output replaces."""
    given: dict[str, Path | str | None] = {"base": options.base, "vae": options.vae}
    for i, entry in enumerate(options.concepts_listed):
        given |= {f"concepts[{i}].file": entry.file, f"concepts[{i}].embedding": entry.embedding}
    return [
        f"{name}: {place} is in the output {options.output}, which is replaced; move it, or choose another output"
        for name, place in given.items()
        if place is not None
        and Path(place).expanduser().exists()
        and options.output.resolve() in Path(place).expanduser().resolve().parents
    ]


def _full_rank_problems(options: FuseOptions) -> list[str]:
    if options.format != "lora" or options.lora.rank is not None or options.lora.energy is not None:
        return []
    if options.refine.method == "distill" and not options.distills_factors:
        return [
            "lora.rank: expected a rank, or lora.energy, because refine.low_rank=false gives full-rank "
            "changes; without it the file is exact"
        ]
    if options.solver.objective == "cosine" and options.method in ("solve", "constrained"):
        return ["lora.rank: expected a rank, or lora.energy, because solver.objective=cosine gives full-rank changes"]
    if options.method in ("ties", "dare", "dare_ties"):
        return [f"lora.rank: expected a rank, or lora.energy, because method={options.method} gives full-rank changes"]
    return []


def _place_problems(options: FuseOptions) -> list[str]:
    """The output is replaced as a whole, so it must be ours to replace."""
    place = options.output
    one_file = is_single_file(place)
    if place.exists() and place.is_dir() == one_file:
        return [f"output: expected a {'file' if one_file else 'folder'}, found {place}, which is none"]
    full = one_file or (place.is_dir() and any(place.iterdir()))
    if place.exists() and full and not extra_file(place, REPORT_FILE).is_file():
        return [
            f"output: {place} holds something other than a fused model, which would be lost; choose another "
            f"{'name' if one_file else 'folder'}"
        ]
    others = [] if one_file or not full else _others(place)
    if others:
        return [
            f"output: beside a fused model {place} holds {', '.join(others[:3])}{' ...' if len(others) > 3 else ''}, "
            "which would be lost; move them, or choose another folder"
        ]
    base = Path(options.base).expanduser()
    if place.exists() and base.exists() and place.samefile(base):
        return [f"output: {place} is the base itself; choose another {'name' if one_file else 'folder'}"]
    return []


def _others(folder: Path) -> list[str]:
    """Names of what is in a folder beside the fused model that was written there; hidden files are nobody's work."""
    known = {MODEL_INDEX, REPORT_FILE, CONCEPT_CONFIG, KEPT, CONCEPT_FILE, NETWORK_FILE}
    with contextlib.suppress(MixshowError, TypeError, ValueError):  # damaged, it names nothing
        known |= set(pipeline_index(str(folder)) or ())
    return sorted(
        each.name
        for each in folder.iterdir()
        if each.name not in known and not each.name.startswith(".") and not each.match(EMBEDDINGS_FILE.format("*"))
    )


def formatted(
    base: Base, members: Sequence[Member], fusion: Fusion, options: FuseOptions
) -> tuple[Fusion, dict[str, Factors] | None]:
    """The fusion that the output can hold, with its factors by module path where it is a network file."""
    if options.format == "folder":
        return fusion, None
    given = LoraOptions() if options.distills_factors else options.lora  # they were cut before
    fusion, factors = as_low_rank(base, members, fusion, rank=given.rank, energy=given.energy)
    tell_loss(loss_report(factors))
    return fusion, factors


def tell_loss(about: Mapping[str, Any]) -> None:
    """What `loss_report` found, where anything was lost."""
    if about["mean_lost"] > 0:
        log.info(
            "rank %d of %d leaves out %.2g of the outputs' squared change on recorded inputs, in the worst layer %.2g",
            about["rank"], about["exact_rank"], about["mean_lost"], about["worst_lost"],
        )  # fmt: skip


def write_fused(
    base: Base,
    members: Sequence[Member],
    fusion: Fusion,
    factors: Mapping[str, Factors] | None,
    about: Mapping[str, Any],
    options: FuseOptions,
    files: Mapping[str, Path],
) -> None:
    """Write the output folder or file.

    Args:
        factors: by module path, where it is a network file.
        about: the report.
        files: more files to keep there, by name.
    """
    if factors is not None:
        extra = {REPORT_FILE: {**about, "lora": loss_report(factors)}}
        save_lora_folder(
            base, members, factors, fusion.embeddings, options.output, naming=options.lora.naming, extra=extra,
            files=files,
        )  # fmt: skip
        return
    fused, attachment = fusion.attach(base)
    with attachment:
        dtype = _DTYPES[options.output_dtype] if is_single_file(options.output) else None
        save_base(fused, options.output, dtype=dtype, extra={REPORT_FILE: about}, files=files)
