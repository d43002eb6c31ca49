"""Trains the built-in base from nothing: autoencoder, latents, diffusion model, judge, key points, export.

python scripts/train_puppets.py                      # everything; goes on where an earlier run stopped
python scripts/train_puppets.py --stage diffusion    # one stage
python scripts/train_puppets.py --steps-scale 0.01   # a quick trial of the whole way
python scripts/train_puppets.py --restore            # checkpoints from the weights that ship, to train them further
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from mixshow.core.errors import MixshowError
from mixshow.core.progress import set_up_logging
from mixshow.puppets.training.restore import restore
from mixshow.puppets.training.stages import WEIGHTS, run, stages


def default_folder() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixshow" / "puppets"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=list(stages()), help="run only this stage (default: all, in order)")
    parser.add_argument(
        "--out", type=Path, default=default_folder(), help="folder of checkpoints (default: %(default)s)"
    )
    parser.add_argument(
        "--weights", type=Path, default=WEIGHTS, help="where the stage export writes (default: %(default)s)"
    )
    parser.add_argument("--steps-scale", type=float, default=1.0, help="multiplies every stage's steps and data")
    parser.add_argument("--steps", type=int, help="steps (scenes for latents) of the stage given by --stage")
    parser.add_argument(
        "--restore", action="store_true", help="only write checkpoints from the exported weights in --weights"
    )
    parser.add_argument("--threads", type=int, help="processor threads")
    arguments = parser.parse_args()
    if arguments.steps is not None and arguments.stage is None:
        parser.error("--steps needs --stage")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    set_up_logging()
    try:
        if arguments.restore:
            restore(arguments.out, arguments.weights, {name: stage.amount for name, stage in stages().items()})
            return 0
        run(arguments.out, arguments.stage, arguments.steps_scale, arguments.steps, arguments.weights)
    except MixshowError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the checkpoint is saved, run the same command to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
