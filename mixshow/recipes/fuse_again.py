"""`mixshow fuse FUSED --add, --remove, --reweight`: change a fused model's concepts, from the statistics it kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixshow.config.fuse import SOLVING, FuseOptions
from mixshow.config.load import load, read_yaml
from mixshow.core.errors import MixshowError, OptionsError, did_you_mean
from mixshow.core.files import read_json
from mixshow.core.progress import log
from mixshow.fusion.report import REPORT_FILE
from mixshow.fusion.statistics_file import KEPT, SUFFIX
from mixshow.models.base import extra_file
from mixshow.recipes.fuse import fuse_options
from mixshow.recipes.fuse_statistics import concept_name

# Nothing is sampled to solve again; options may ask for it.
_AT_FIRST: Mapping[str, Mapping[str, Any]] = {
    "refine": {"method": "none"},
    "report": {"heldout": False},
    "statistics": {"keep": True, "collect": "independent"},
}


def fuse_again(
    place: Path | str,
    overrides: Sequence[str] = (),
    *,
    add: Sequence[str] = (),
    remove: Sequence[str] = (),
    reweight: Sequence[str] = (),
) -> Path:
    """Solve a fused model again with other concepts; returns its folder or file, in place unless `output=` is given.

    Args:
        place: a fused model that kept its statistics.
        overrides: `key=value` texts that replace options it was fused with.
        add: concept files, or options files with the keys of `concepts[]`; statistics beside a concept file are used.
        remove: concepts by name, tokens or file.
        reweight: `NAME=WEIGHT` each.

    Raises:
        MixshowError: it is no fused model, or has no such concept; see `fuse` for the rest.
        OptionsError: statistics were not kept.
    """
    about = _report(Path(place))
    values: dict[str, Any] = dict(about["options"])
    entries = _named_entries(about)
    for name in remove:
        del entries[_found(name, entries, place)]
    for text in reweight:
        name, weight = _weight(text)
        entries[_found(name, entries, place)]["weight"] = weight
    _check_kept(values, list(entries.values()), Path(place))
    values["concepts"] = [*entries.values(), *(_added(text) for text in add)]
    for section, changed in _AT_FIRST.items():
        if section != "statistics" or values.get("method", "solve") in SOLVING:
            values[section] = {**values.get(section, {}), **changed}
    values["output"] = str(place)
    before = about["options"].get("refine", {}).get("method", "none")
    if before != "none" and not _refined(overrides):
        log.info("solved anew without refining; refine.method=%s refines it as before", before)
    known = {Path(each["statistics"]) for each in (*entries.values(), values["anchor"]) if each.get("statistics")}
    return fuse_options(load(FuseOptions, str(place), overrides, values=values), str(place), known)


def _report(place: Path) -> dict[str, Any]:
    file = extra_file(place, REPORT_FILE)
    if not file.is_file():
        raise MixshowError(f"{place}: expected a fused model with its {REPORT_FILE}, found none; fuse it first")
    about = read_json(file)
    try:
        entries = about["options"]["concepts"]
        whole = all("file" in entry for entry in entries) and all("tokens" in concept for concept in about["concepts"])
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise MixshowError(f"{file}: expected the report of a fusion, found something else; fuse the model again")
    return about


def _named_entries(about: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    """The options of each concept by all its names: `pip`, its tokens, its file's name and path."""
    entries = about["options"]["concepts"]
    if not isinstance(entries, list) or len(entries) != len(about["concepts"]):
        raise MixshowError("expected a report with its concepts listed, found another; fuse the model again")
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for entry, concept in zip(entries, about["concepts"]):
        file, text = Path(entry["file"]), entry.get("trigger") or " ".join(concept["tokens"])
        found[concept_name(concept["tokens"], text), text, str(file), file.name, file.stem] = dict(entry)
    return found


def _found(name: str, entries: Mapping[tuple[str, ...], Any], place: Path | str) -> tuple[str, ...]:
    for position in range(5):  # the plainest name first: two files may both be called concept.safetensors
        matching = [names for names in entries if names[position] == name]
        if len(matching) == 1:
            return matching[0]
    raise MixshowError(f"{place}: has no concept '{name}'{did_you_mean(name, [names[0] for names in entries])}")


def _weight(text: str) -> tuple[str, float]:
    name, sign, weight = text.rpartition("=")
    try:
        if sign and name:
            return name, float(weight)
    except ValueError:
        pass
    raise MixshowError(f"--reweight: expected NAME=WEIGHT such as pip=2, found '{text}'")


def _added(text: str) -> dict[str, Any]:
    """The options of a concept that comes in."""
    file = Path(text)
    if file.suffix in (".yml", ".yaml"):
        return read_yaml(file)
    beside = file.with_name(file.stem + SUFFIX)
    return {"file": text, **({"statistics": str(beside)} if beside.is_file() else {})}


def _check_kept(values: dict[str, Any], entries: Sequence[dict[str, Any]], place: Path) -> None:
    """Raises OptionsError where statistics are missing; points to those that moved with the model."""
    if values.get("method", "solve") not in SOLVING:
        return
    problems = []
    if values.get("statistics", {}).get("collect") == "progressive":
        problems.append("statistics.collect: progressive statistics depend on all concepts; fuse anew")
    anchor = values["anchor"] = dict(values.get("anchor", {}))
    needed = {f"concept {entry['file']}": entry for entry in entries}
    if anchor.get("weight", 0) > 0 and values.get("method") != "subspace":
        needed["anchor"] = anchor
    for what, entry in needed.items():
        file = entry.get("statistics")
        moved = None if file is None else extra_file(place, f"{KEPT}/{Path(file).name}")
        if file is not None and not Path(file).is_file() and moved is not None and moved.is_file():
            entry["statistics"] = str(moved)
        elif file is None or not Path(file).is_file():
            problems.append(
                f"{what}: its statistics were not kept ({file or 'none named'}); fuse once with statistics.keep=true"
            )
    if problems:
        raise OptionsError(str(place), problems)


def _refined(overrides: Sequence[str]) -> bool:
    return any(text.startswith("refine") for text in overrides)
