"""What regions cost, and how well they keep characters apart.

    python benchmarks/compose.py speed [--regions 3 8] [--device cuda --precision bf16]
    python benchmarks/compose.py operations [--regions 3 8]
    python benchmarks/compose.py scenes FUSED_FOLDER [--scenes 100] [--threads 1] [--report]

`speed`: time and memory of a picture with regions over the same picture with one prompt, on random weights of Stable
Diffusion 1.5's shape, with the published way as it works beside it. `operations`: the same counted, in seconds.
`scenes`: what the judge sees in scenes of two and more characters on the built-in base, for regions (given, or found
from attention), plain prompting and the published hard boxes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # its neighbours, wherever it is started


def main() -> None:
    """Run one of them."""
    from benchmarks import compose_operations, compose_scenes, compose_speed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="speed|operations|scenes")
    modules = {"speed": compose_speed, "operations": compose_operations, "scenes": compose_scenes}
    for name, module in modules.items():
        command = commands.add_parser(name, help=module.__doc__, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
