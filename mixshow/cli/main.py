"""`mixshow COMMAND`: finds the command's module, runs it, and turns mistakes into one line and an exit status."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from mixshow.core.errors import MixshowError
from mixshow.core.progress import set_up_logging
from mixshow.core.subnormals import subnormals_flushed
from mixshow.core.version import __version__

# Command -> one line of help. The module `mixshow.cli.<command>` has `add_arguments(parser)` and `run(arguments)`;
# it is imported only when its command is called, so that `mixshow --help` does not wait for torch.
COMMANDS = {
    "train": "train one character (ED-LoRA) from an options file",
    "fuse": "fuse several characters into one model",
    "statistics": "record what a concept's layers read, for fusing it later or elsewhere",
    "compose": "put characters into one picture: regions, poses, prompts",
    "scene": "published scenes as options",
    "sample": "pictures of a prompt, with a concept file, a fused model or the plain base",
    "pose": "skeletons for scenes: draw them, find them in photographs, show the named ones",
    "lycoris": "algorithms for networks: their options, and what a preset would change in a model",
    "puppets": "the built-in base: its world, its cast, its measured quality",
    "demo": "the whole show on the built-in base: train, fuse, compose, measure",
}

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0, 2 for mistakes of input, 130 for Ctrl-C)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in arguments if not word.startswith("-")), None)
    debug = "--debug" in arguments
    try:
        if command in COMMANDS:
            module = importlib.import_module(f"mixshow.cli.{command}")
            parsed = _parsed(_parser({command: module}), arguments)
            set_up_logging(debug)
            _quieten_libraries()
            with subnormals_flushed():
                module.run(parsed)
        else:
            _parser({}).parse_args(arguments)  # --help, --version, or an unknown command's message
        return 0
    except MixshowError as error:
        if debug:
            raise
        print(f"mixshow: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nmixshow: stopped; finished files are whole, training and fusing go on from them", file=sys.stderr)
        return EXIT_INTERRUPTED
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(
            f"mixshow: {error.filename or 'output'}: {error.strerror}; nothing half-written was kept", file=sys.stderr
        )
        return EXIT_USER_ERROR


def _parser(modules: Mapping[str, ModuleType]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mixshow", description="Train characters, fuse them into one Stable Diffusion model, compose scenes."
    )
    parser.add_argument("--version", action="version", version=f"mixshow {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        sub = commands.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name in modules:
            modules[name].add_arguments(sub)
    return parser


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parsed arguments; `key=value` may stand behind options too, where argparse alone no longer takes them."""
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (any(word.startswith("-") for word in rest) or not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _quieten_libraries() -> None:
    """The model libraries' own bars and advice would bury ours."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("accelerate").setLevel(logging.ERROR)
