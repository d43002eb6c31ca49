"""The tables of `fusion_table.py`, from what its runs left."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from benchmarks.fusion_table_runs import AVERAGE, METHODS, OURS, Table
from mixshow.core.files import read_json
from mixshow.evaluation.interval import PairedDifference, Share, share_of
from mixshow.evaluation.page import markdown_table

Hits = Mapping[tuple[str, int], bool]


@dataclasses.dataclass(frozen=True)
class Pairs:
    """One way's pictures with those of the characters' own models, and what it measured.

    Attributes:
        single: by `identity` and `place`, for the pictures that both made, by character and number. `fused` likewise.
        errors: E of each character.
        drift: of the base.
    """

    single: Mapping[str, Hits]
    fused: Mapping[str, Hits]
    errors: Sequence[float]
    drift: float

    def change(self, key: str = "identity") -> PairedDifference:
        return PairedDifference.of(list(self.single[key].values()), list(self.fused[key].values()))


def pairs_of(table: Table, method: str, size: int) -> dict[int, Pairs]:
    """By seed, what is done."""
    found: dict[int, Pairs] = {}
    for seed in table.seeds:
        path = table.fused_file(method, size, seed)
        if not path.is_file():
            continue
        run = read_json(path)
        names = table.cast[:size]
        own = {name: read_json(table.single_file(name, seed)) for name in names}
        both = {
            key: {
                (name, number): pair
                for name in names
                for number, pair in enumerate(zip(own[name][key][name], run[key][name]))
            }
            for key in ("identity", "place")
        }
        found[seed] = Pairs(
            {key: {place: pair[0] for place, pair in pairs.items()} for key, pairs in both.items()},
            {key: {place: pair[1] for place, pair in pairs.items()} for key, pairs in both.items()},
            list(run["held_out"]["errors"].values()),
            run["held_out"]["drift"],
        )
    return found


def report(table: Table) -> str:
    """One table for each number of characters, of what is done."""
    training = "as the options files say" if table.steps is None else f"{table.steps} steps"
    parts = [
        f"{table.pictures} pictures of each character and seed in '{OURS}', {table.other_pictures} in the others; "
        f"seeds {list(table.seeds)}; training: {training}\n"
        "change: of identity, over pairs of pictures (95 % interval); seeds: from seed to seed; ahead: identity of "
        f"'{OURS}' less the way's, mean and standard deviation over seeds, ~ where the first is not larger; E: mean "
        "(least..most); ratios: to averaging"
    ]
    header = [
        *("fused by", "identity, single -> fused (95 %)", "change", "seeds", "place, single -> fused"),
        *("E", "E ratio", "drift", "drift ratio", "ahead"),
    ]
    for size in table.sizes:
        all_pairs = {method: pairs_of(table, method, size) for method in METHODS}
        rows = [row(method, all_pairs[method], all_pairs) for method in table.methods if all_pairs[method]]
        parts.append(f"{size} characters: {', '.join(table.cast[:size])}\n{markdown_table(header, rows)}")
    return "\n\n".join(parts)


def row(method: str, pairs: Mapping[int, Pairs], others: Mapping[str, Mapping[int, Pairs]]) -> list[str]:
    """One way's row, over all its seeds."""
    whole = {key: [hit for own in pairs.values() for hit in own.fused[key].values()] for key in ("identity", "place")}
    single = {key: [hit for own in pairs.values() for hit in own.single[key].values()] for key in ("identity", "place")}
    changes = [own.change().value for own in pairs.values() if own.fused["identity"]]
    errors = [error for own in pairs.values() for error in own.errors]
    average = {seed: own for seed, own in others[AVERAGE].items() if seed in pairs}
    return [
        method,
        *(
            [
                f"{percent(share_of(single['identity']))} -> {share_of(whole['identity'])}",
                str(PairedDifference.of(single["identity"], whole["identity"])),
                f"{100 * min(changes):+.1f}..{100 * max(changes):+.1f}",
                f"{percent(share_of(single['place']))} -> {percent(share_of(whole['place']))}",
            ]
            if whole["identity"]
            else ["-"] * 4
        ),
        f"{statistics.mean(errors):.2f} ({min(errors):.2f}..{max(errors):.2f})",
        ratio(
            [statistics.mean(own.errors) for own in pairs.values()],
            [statistics.mean(a.errors) for a in average.values()],
        ),
        f"{statistics.mean(own.drift for own in pairs.values()):.3f}",
        ratio([own.drift for own in pairs.values()], [own.drift for own in average.values()]),
        "" if method == OURS else ahead(others[OURS], pairs),
    ]


def percent(share: Share) -> str:
    return f"{100 * share.value:.1f} %"


def ratio(own: Sequence[float], of: Sequence[float]) -> str:
    """Of the means, where both are of the same seeds."""
    return f"{statistics.mean(own) / statistics.mean(of):.2f}" if len(own) == len(of) and sum(of) > 0 else "-"


def ahead(ours: Mapping[int, Pairs], theirs: Mapping[int, Pairs]) -> str:
    """How much more often ours is the character, in points, over the seeds and pictures that both have."""
    found = []
    for seed in sorted(ours.keys() & theirs.keys()):
        own, other = ours[seed].fused["identity"], theirs[seed].fused["identity"]
        shared = sorted(own.keys() & other.keys())
        if shared:
            found.append(100 * PairedDifference.of([other[key] for key in shared], [own[key] for key in shared]).value)
    if not found:
        return "-"
    if len(found) == 1:
        return f"{found[0]:+.1f} (one seed)"
    mean, spread = statistics.mean(found), statistics.stdev(found)
    return f"{'' if abs(mean) > spread else '~'}{mean:+.1f} ± {spread:.1f}"
