"""`mixshow statistics`: record the inputs of one concept's layers, or the base's own, into a file that travels."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixshow.config.fuse import ConceptOptions, FuseOptions
from mixshow.config.load import load, read_yaml
from mixshow.config.recording import StatisticsOptions
from mixshow.config.statistics import StatisticsFileOptions
from mixshow.core.errors import OptionsError
from mixshow.core.processes import Processes
from mixshow.core.progress import log
from mixshow.edlora.layerwise import layerwise_states
from mixshow.fusion.collect import POINTS, Collection
from mixshow.fusion.coverage import OWN, covered_layers
from mixshow.fusion.layers import Stage
from mixshow.fusion.members import Member
from mixshow.fusion.memory import recording_bytes
from mixshow.fusion.origin import Origins
from mixshow.fusion.own_and_fused import running_bytes
from mixshow.fusion.prompts import CAPTIONS, PICTURES, TEXT
from mixshow.fusion.recording import record_all
from mixshow.fusion.sensitivity import backward_bytes
from mixshow.fusion.sharing import summed
from mixshow.fusion.statistics_file import SUFFIX, open_statistics, write_statistics
from mixshow.models import Base, load_base, prompt_states
from mixshow.models.device import device_named
from mixshow.recipes.fuse_members import read_member
from mixshow.recipes.memory import check_memory
from mixshow.sampling.generate import latent_size, start_noise


def record_statistics(
    path: Path | None, overrides: Sequence[str] = (), *, values: Mapping[str, Any], captions: bool = False
) -> Path:
    """Record statistics; returns their file.

    Of several processes (`accelerate launch -m mixshow statistics`) each records some prompts, the main one writes.

    Args:
        path: an options file; None: there is none.
        overrides: `key=value` texts that replace options.
        values: options that the command's arguments give, which win over the file's.
        captions: of the base alone.

    Raises:
        OptionsError: everything wrong with the options.
        MixshowError: the concept does not fit the base; the file cannot be written, and nothing is left behind then.
    """
    contents = {**({} if path is None else read_yaml(path)), **values}
    source = str(path or "statistics")
    options = load(StatisticsFileOptions, source, overrides, values=contents)
    if (options.concept is None) != captions:
        expected = "a concept or --captions" if options.concept is None else "no concept beside --captions"
        raise OptionsError(source, [f"concept: expected {expected}, found {options.concept or 'neither'}"])
    output = options.output or _beside(options.concept)
    if output.exists():
        open_statistics(output)  # whatever else it is stays
    processes = Processes.launched()
    base = load_base(options.base, vae=options.vae, device=device_named(options.device))
    if problem := steps_problem(base, options.statistics.steps):
        raise OptionsError(source, [f"statistics.steps: {problem}"])
    member = None if options.concept is None else _member(options, options.concept, base)
    collection, ordinary = collection_of(options.statistics), options.captions or CAPTIONS
    kinds = [kind for kind in options.layers if member is not None or kind != OWN]
    layers = covered_layers(base, member, kinds, biases=options.biases)
    if not layers:
        raise OptionsError(source, [f"layers: {', '.join(options.layers)} are none of this base and concept"])
    needed = recording_bytes(layers, collection)
    if any(layer.stage is Stage.SPATIAL for layer in layers):
        needed += collection.batch_size * running_bytes(base, collection)
    advice = (
        "lower statistics.batch_size, statistics.moment_width or statistics.kept_rows, or leave kinds out of layers="
    )
    if collection.sensitive:
        needed += weighing_bytes(base, collection)
    check_memory("recording", needed, base.device, advice)
    start = time.monotonic()
    origin = Origins(base, collection, ordinary).of(member)
    log.info("recording %d layers under %s", len(layers), "the base" if member is None else member.concept.text)
    found = record_all(base, member, layers, collection, ordinary, processes.part())
    found = summed(found, processes, base.device, collection.kept_rows)
    processes.part_ways()
    if not processes.main:
        return output
    write_statistics(output, found, origin, {layer.path for layer in layers if layer.extended})
    log.info(
        "statistics: %s (%d layers, %.1f MB, %.1f s)",
        output, len(found), output.stat().st_size / 1e6, time.monotonic() - start,
    )  # fmt: skip
    return output


def steps_problem(base: Base, steps: int) -> str:
    """Why pictures of a base cannot be denoised in so many steps; empty where they can."""
    most = base.num_train_timesteps
    return "" if steps <= most else f"expected at most {most}, for which this base was trained, found {steps}"


def kept_for_gradients(base: Base, width: int | None, height: int | None) -> int:
    """Bytes that a pass of one picture keeps for its gradients, by running it.

    Args:
        width: pixels; None: the base's native side. `height` likewise.
    """
    rows, columns = latent_size(base, width, height)
    latents, states = start_noise(base, [0], rows, columns), prompt_states(base, [""])
    with layerwise_states(base.unet):
        return backward_bytes(base.unet, latents, 1, **states.for_unet(latents))


def weighing_bytes(base: Base, collection: Collection) -> int:
    """What passes of a batch of pictures keep for their gradients, where rows are weighed."""
    return collection.batch_size * kept_for_gradients(base, collection.width, collection.height)


def _member(options: StatisticsFileOptions, file: Path, base: Base) -> Member | None:
    told = ("embedding", "trigger", "missing_alpha", "alpha", "text_encoder", "unet", "tokens")
    return read_member(ConceptOptions(file, **{name: getattr(options, name) for name in told}), base)


def _beside(concept: Path | None) -> Path:
    return Path(f"captions{SUFFIX}") if concept is None else concept.with_name(concept.stem + SUFFIX)


def collection_of(given: StatisticsOptions, collects: str = "independent") -> Collection:
    """The collection that options ask for.

    Args:
        collects: sequential, independent or progressive.
    """
    return Collection(
        progressive=collects == "progressive",
        sequential=collects == "sequential",
        text_prompts=tuple(given.text_prompts or TEXT),
        picture_prompts=tuple(given.picture_prompts or PICTURES),
        every_position=given.text_rows == "all",
        steps=given.steps,
        points=given.points or POINTS,
        width=given.width,
        height=given.height,
        seed=given.seed,
        batch_size=given.batch_size,
        moment_width=given.moment_width,
        kept_rows=given.kept_rows,
        sensitive=given.row_weights == "sensitivity",
    )


def collection_for(options: FuseOptions) -> Collection:
    """With rows where the objective wants them."""
    rows = 0 if options.solver.objective == "squares" else options.statistics.rows
    return dataclasses.replace(collection_of(options.statistics, options.collects), rows=rows)
