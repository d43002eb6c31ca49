"""How much of a character its embeddings hold: what the judge sees without the network, beside class word and all.

    python benchmarks/embeddings.py CONCEPT.safetensors [...] [--guidance 5] [--pictures 30] [--first-seed 1000]

Special features are not counted: the base cannot draw them, whatever the embeddings say.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mixshow.edlora.concept import attach_concepts
from mixshow.evaluation.interval import share_of
from mixshow.evaluation.page import markdown_table
from mixshow.formats import read_concept
from mixshow.models import load_base
from mixshow.puppets.cast import CAST, member
from mixshow.puppets.judge import Judge
from mixshow.recipes.demo import character_pictures

ASKED = ("kind", "hair", "shirt", "trousers")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("concepts", nargs="+", type=Path, help="in folders named after their cast members")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--pictures", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=1000)
    arguments = parser.parse_args()
    base, judge = load_base("puppets"), Judge.load()
    rows = []
    for path in arguments.concepts:
        name = path.resolve().parent.name
        if name not in CAST:
            parser.error(f"{path}: expected a folder named after a cast member ({', '.join(CAST)}), found '{name}'")
        concept, look = read_concept(path), member(name)
        for what, text, strength in (
            ("class word", f"a {look.kind}", 0.0),
            ("embeddings alone", concept.text, 0.0),
            ("with the network", concept.text, 1.0),
        ):
            tuned, attachment = attach_concepts(base, [concept], strengths=[strength])
            with attachment:
                pictures = character_pictures(
                    tuned,
                    text,
                    count=arguments.pictures,
                    first_seed=arguments.first_seed,
                    guidance=arguments.guidance,
                )
            seen = judge.attributes(pictures)
            shares = [share_of([each[asked] == getattr(look, asked) for each in seen]) for asked in ASKED]
            rows.append([name, what, *map(str, shares)])
    print(markdown_table(["character", "drawn with", *ASKED], rows))


if __name__ == "__main__":
    main()
