"""The statistics of a fusion: from files that were given, left by an interrupted run, or recorded now.

What is recorded goes into files in the run's work folder, one per concept, whole or not at all. A run that was
interrupted finds them there; with `statistics.keep` they are put to the output too.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from mixshow.config.fuse import SOLVING, FuseOptions
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.core.processes import Processes
from mixshow.core.progress import log, progress_bar
from mixshow.fusion.collect import Collection, Statistics
from mixshow.fusion.coverage import fused_layers, inputs_for
from mixshow.fusion.fuse import Recorded
from mixshow.fusion.layers import Layer, Stage
from mixshow.fusion.members import Member
from mixshow.fusion.origin import Origin, Origins
from mixshow.fusion.prompts import CAPTIONS
from mixshow.fusion.recording import record_all
from mixshow.fusion.sharing import summed
from mixshow.fusion.solved_layers import digest
from mixshow.fusion.statistics import input_width
from mixshow.fusion.statistics_file import (
    KEPT,
    SUFFIX,
    StatisticsFile,
    StoredInputs,
    open_statistics,
    write_statistics,
)
from mixshow.models import Base
from mixshow.models.base import extra_file
from mixshow.models.vocabulary import ConceptVocabulary
from mixshow.recipes.fuse_memory import check_fusion_memory
from mixshow.recipes.fuse_work import work_folder
from mixshow.recipes.statistics import collection_for


@dataclasses.dataclass(frozen=True, eq=False)
class _Wanted:
    """One set of statistics.

    Attributes:
        name: of its file, when it is kept.
        member: whose; None: the base's own, on captions.
        place: where it is put when it is recorded.
        file: the one to use; None: it has to be recorded.
    """

    name: str
    member: Member | None
    origin: Origin
    place: Path
    file: StatisticsFile | None


@dataclasses.dataclass(frozen=True, eq=False)
class FusionStatistics:
    """What a fusion is solved from.

    Attributes:
        recorded: by stage; the tensors are still in their files.
        files: by the option that names them, `concepts[0]` or `anchor`: name and file.
        key: of all that these numbers depend on.
        seconds: spent on recording.
    """

    recorded: Mapping[Stage, Recorded]
    files: Mapping[str, tuple[str, Path]]
    key: str
    seconds: float

    def to_keep(self) -> dict[str, Path]:
        """What goes to the output, by name within it."""
        return {f"{KEPT}/{name}{SUFFIX}": file for name, file in self.files.values()}

    def named_in(self, options: FuseOptions) -> FuseOptions:
        """Options that name the kept files, so that the same model can be solved again from them."""
        places = {key: extra_file(options.output, f"{KEPT}/{name}{SUFFIX}") for key, (name, _) in self.files.items()}
        concepts = [
            dataclasses.replace(entry, statistics=places[f"concepts[{i}]"])
            for i, entry in enumerate(options.concepts_listed)
        ]
        anchor = dataclasses.replace(options.anchor, statistics=places.get("anchor"))
        return dataclasses.replace(options, concepts=concepts, anchor=anchor)


def gather_statistics(
    base: Base,
    members: Sequence[Member],
    options: FuseOptions,
    source: str,
    processes: Processes | None = None,
    known: AbstractSet[Path] = frozenset(),
) -> FusionStatistics | None:
    """All statistics that a fusion needs, those that are not at hand recorded now.

    Args:
        known: files whose numbers were checked before.
        processes: that record some of the prompts each, and see the same files; the main one writes them.

    Returns:
        None where nothing is recorded beforehand: a method that needs nothing, or progressive collection.

    Raises:
        OptionsError: files that do not belong to this base, concept, prompts or version, lack layers or hold no
            moments, all of them together.
        MixshowError: there is too little memory; a file cannot be written.
    """
    if options.method not in SOLVING:
        return None
    collection, captions = collection_for(options), options.anchor.captions or CAPTIONS
    layers = _recorded_layers(base, members, options, collection)
    if collection.progressive:
        check_fusion_memory(base, members, options, layers, recording=False)
        return None
    wanted = _wanted(base, members, options, Origins(base, collection, captions), layers, source, known)
    waiting = [key for key, each in wanted.items() if each.file is None]
    check_fusion_memory(base, members, options, fused_layers(base, members), recording=bool(waiting))
    start = time.monotonic()
    opened: dict[str, StatisticsFile] = {}
    processes = processes or Processes.alone()
    # A picture's step counts one; text features, which take little beside them, count with the first.
    steps = {key: _steps(wanted[key], collection, captions, processes.part(i)) for i, key in enumerate(wanted)}
    total = sum(steps[key] for key in waiting)
    with progress_bar(total, "recording concepts", enabled=bool(waiting) and processes.main) as bar:
        for number, (key, each) in enumerate(wanted.items()):
            if each.file is None:
                every, until = processes.part(number), bar.n + steps[key]
                found = record_all(base, each.member, layers, collection, captions, every, bar.update)
                found = summed(found, processes, base.device, collection.kept_rows)
                opened[key] = _written(each, found, layers, processes)
                bar.update(until - bar.n)  # where no layer needed pictures
            else:
                opened[key] = each.file
    stored: dict[str, Mapping[str, StoredInputs]] = {
        key: inputs_for(base, file, layers) for key, file in opened.items()
    }
    anchor = stored.pop("anchor", None)
    recorded = Recorded(list(stored.values()), anchor)
    files = {key: (wanted[key].name, file.path) for key, file in opened.items()}
    decisive = digest([(key, wanted[key].origin.key(), _version(file.path)) for key, file in opened.items()])
    return FusionStatistics(dict.fromkeys(Stage, recorded), files, decisive, time.monotonic() - start)


def statistics_at_hand(base: Base, members: Sequence[Member], options: FuseOptions, source: str) -> set[str]:
    """Which statistics need not be recorded, by the option that names them; files that do not fit are refused.

    Raises:
        OptionsError: what is wrong with them, all together.
    """
    if options.method not in SOLVING or options.collects == "progressive":
        return set()
    collection = collection_for(options)
    origins = Origins(base, collection, options.anchor.captions or CAPTIONS)
    layers = _recorded_layers(base, members, options, collection)
    wanted = _wanted(base, members, options, origins, layers, source, frozenset())
    return {key for key, each in wanted.items() if each.file is not None}


def _recorded_layers(
    base: Base, members: Sequence[Member], options: FuseOptions, collection: Collection
) -> list[Layer]:
    """The layers that statistics are of; with `keep` those solved in sequence too, so that they can be apart later."""
    layers = fused_layers(base, members)
    return [layer for layer in layers if options.statistics.keep or not collection.solves_in_order(layer)]


def _wanted(
    base: Base,
    members: Sequence[Member],
    options: FuseOptions,
    origins: Origins,
    layers: Sequence[Layer],
    source: str,
    known: AbstractSet[Path],
) -> dict[str, _Wanted]:
    """By the option that names them; with the files that are at hand, checked."""
    folder, collection = work_folder(options), collection_for(options)
    given: dict[str, tuple[Member | None, Path | None]] = {
        f"concepts[{i}]": (member, options.concepts_listed[i].statistics) for i, member in enumerate(members)
    }
    if options.anchor.weight > 0 and options.method != "subspace":
        given["anchor"] = (None, options.anchor.statistics)
    found: dict[str, _Wanted] = {}
    problems: list[str] = []
    for key, (member, file) in given.items():
        name = "captions" if member is None else concept_name(member.concept.embeddings, member.concept.text)
        name = name if name not in [each.name for each in found.values()] else f"{name}-{len(found)}"
        origin = origins.of(member)
        place = _work_file(folder, name, origin, layers, collection)
        try:
            if file is None:
                at_hand = _left(base, place, origin, layers)
            else:
                at_hand = _checked(base, file, origin, layers)
                if file not in known:
                    at_hand.check_numbers()
            found[key] = _Wanted(name, member, origin, place, at_hand)
        except MixshowError as error:
            problems.append(f"{key}.statistics: {error}")
    if problems:
        raise OptionsError(source, problems)
    return found


def _checked(base: Base, path: Path, origin: Origin, layers: Sequence[Layer]) -> StatisticsFile:
    """A file if it says that it is of the wanted statistics and layers; raises MixshowError otherwise."""
    file = open_statistics(path)
    different = file.origin.differences(origin)
    if different:
        raise MixshowError(f"{path}: {'; '.join(different)}; record it again, or change the fusion's options")
    inputs_for(base, file, layers)
    return file


def _left(base: Base, path: Path, origin: Origin, layers: Sequence[Layer]) -> StatisticsFile | None:
    """What an interrupted run left of one concept, if it can be used."""
    try:
        file = _checked(base, path, origin, layers) if path.is_file() else None
    except MixshowError:
        return None
    if file is not None:
        log.info("%s: recorded by an interrupted run", path)
    return file


def _steps(wanted: _Wanted, collection: Collection, captions: Sequence[str], every: slice) -> int:
    """Denoising steps of all pictures that this process records."""
    pictures = captions if wanted.member is None else collection.picture_prompts
    return collection.steps * len(pictures[every])


def _written(wanted: _Wanted, found: Statistics, layers: Sequence[Layer], processes: Processes) -> StatisticsFile:
    """What all processes recorded, in a file that all of them open."""
    if processes.main:
        write_statistics(wanted.place, found, wanted.origin, {layer.path for layer in layers if layer.extended})
    processes.gathered(None)  # it is written
    return open_statistics(wanted.place)


def _work_file(folder: Path, name: str, origin: Origin, layers: Sequence[Layer], collection: Collection) -> Path:
    """Where a set of statistics lies during the run; how many rows wide inputs have is in its name too."""
    wide = any(input_width(layer.module) + layer.extended > collection.moment_width for layer in layers)
    sampling = f"-{collection.moment_width}-{collection.kept_rows}" if wide else ""
    return folder / f"{name}-{origin.key()}{sampling}{SUFFIX}"


def _version(path: Path) -> tuple[int, int]:
    """Tells a file from one that replaces it, recorded elsewhere perhaps and rounded in another way."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns


def concept_name(tokens: Iterable[str], text: str) -> str:
    """What a concept's files are called: `pip` for `<pip1> <pip2>`; by its trigger where it has no tokens."""
    names = ConceptVocabulary().extended(tokens, layers=0, first_id=0).concepts
    return re.sub(r"[^\w.-]+", "_", next(iter(names), text))
