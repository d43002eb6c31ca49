"""Which guidance keeps a character's looks: identity by guidance, for trained concepts of cast members.

    python benchmarks/guidance.py CONCEPT.safetensors [...] [--guidance 2 3 4 5] [--pictures 36] [--first-seed 1000]

Every guidance gets the same prompts and seeds. The seeds are not the demo's (which start at 0), so that what is chosen
here is not chosen on what is reported there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mixshow.edlora.concept import attach_concepts
from mixshow.evaluation.identity import identity_share
from mixshow.evaluation.interval import Share
from mixshow.evaluation.page import markdown_table
from mixshow.formats import read_concept
from mixshow.models import load_base
from mixshow.puppets.cast import CAST
from mixshow.puppets.judge import Judge
from mixshow.recipes.demo import character_pictures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concepts", nargs="+", type=Path, help="in folders named after their cast members")
    parser.add_argument("--guidance", nargs="+", type=float, default=[2.0, 3.0, 4.0, 5.0])
    parser.add_argument("--pictures", type=int, default=36)
    parser.add_argument("--first-seed", type=int, default=1000)
    arguments = parser.parse_args()
    base, judge = load_base("puppets"), Judge.load()
    rows = []
    total = dict.fromkeys(arguments.guidance, 0)
    for path in arguments.concepts:
        name = path.resolve().parent.name
        if name not in CAST:
            parser.error(f"{path}: expected a folder named after a cast member ({', '.join(CAST)}), found '{name}'")
        concept = read_concept(path)
        row: list[object] = [name]
        for guidance in arguments.guidance:
            tuned, attachment = attach_concepts(base, [concept])
            with attachment:
                pictures = character_pictures(
                    tuned, concept.text, count=arguments.pictures, first_seed=arguments.first_seed, guidance=guidance
                )
            share = identity_share(judge, pictures, [name] * len(pictures))
            total[guidance] += share.hits
            row.append(f"{share.hits} of {share.trials}")
        rows.append(row)
    trials = arguments.pictures * len(arguments.concepts)
    rows.append(["together", *(str(Share(hits, trials)) for hits in total.values())])
    print(markdown_table(["guidance", *(f"{value:g}" for value in arguments.guidance)], rows))


if __name__ == "__main__":
    main()
