"""Characters fused in every way, on the built-in base: identity and prompt alignment, single and fused, E and drift.

    python benchmarks/fusion_table.py --cast-sizes 2 4 8 --seeds 0 1 2 --output experiments/fusion_table

The form of tables 1 and 2 of Mix-of-Show (arXiv 2305.18292). Every character is trained once per seed with its file in
options/train/edlora; the first so many of them are fused in each way as `mixshow fuse` would. Pictures are paired: the
same prompts and seeds for a character's own model and for the fused one. Identity: pictures in which the judge sees
the character. Place: pictures in which it sees the place that the prompt names. E and drift: `mixshow fuse`'s held-out
report.

Stopped, it goes on where it was; what is done is not done again, and `--report` prints what there is. Several may run
at once, for other seeds. More pictures asked for later are added to those that are there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # its neighbours, wherever it is started


def main() -> None:
    """Train, fuse and judge what is not done yet; print the tables."""
    from benchmarks.fusion_table_report import report
    from benchmarks.fusion_table_runs import METHODS, Table, run
    from mixshow.core.subnormals import subnormals_flushed
    from mixshow.puppets.cast import CAST

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("experiments/fusion_table"))
    parser.add_argument("--cast", nargs="+", choices=list(CAST), default=list(CAST))
    parser.add_argument("--cast-sizes", nargs="+", type=int, default=[2, 4, 8], help="so many characters are fused")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--pictures", type=int, default=100, help="of each character and seed")
    parser.add_argument(
        "--other-pictures", type=int, help="the same in ways other than ours; --pictures when not given"
    )
    parser.add_argument("--steps", type=int, help="of training; as the options files say when not given")
    parser.add_argument(
        "--fuse",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="further options of mixshow fuse; give each choice of them an --output of its own",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the fused models, beside their results; more pictures are made of these",
    )
    parser.add_argument("--report", action="store_true", help="print what is done, run nothing")
    given = parser.parse_args()
    if not all(1 < size <= len(given.cast) for size in given.cast_sizes):
        parser.error(f"--cast-sizes: expected numbers from 2 to {len(given.cast)}, found {given.cast_sizes}")
    others = given.pictures if given.other_pictures is None else given.other_pictures
    table = Table(
        given.output, given.cast, given.cast_sizes, given.seeds, given.methods, given.pictures, others, given.steps,
        given.fuse, given.keep,
    )  # fmt: skip
    if not given.report:
        with subnormals_flushed():  # as `mixshow fuse` does
            run(table)
    print(report(table))


if __name__ == "__main__":
    main()
