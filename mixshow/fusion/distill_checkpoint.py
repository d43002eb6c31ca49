"""Where distilling stands, in files, so that an interrupted one goes on as if nothing had happened.

The lessons of a round are one safetensors file, written once a round, because no one can make the same again when the
fused model that drew them has moved on. The rest is the state of the steps: what the optimizer moves and remembers, the
generator, the looks at validation prompts. A state is written when some time went by since the last, so that what an
interruption loses is bounded whatever a step takes, and fast runs write none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_pickled_weights, read_safetensors, write_safetensors, written_atomically
from mixshow.core.progress import log
from mixshow.fusion.lessons import Curriculum, Lessons
from mixshow.fusion.stopping import EarlyStopping

_TENSORS = ("latents", "times", "targets", "weights")


@dataclasses.dataclass(frozen=True, eq=False)
class Position:
    """Where distilling stands.

    Attributes:
        number: of the round.
        step: steps taken, of all rounds.
        ended: whether it was stopped there.
        parameters: what the optimizer moves, in its order.
        optimizer: its state.
        generator: its state.
        stopping: state of early stopping; None: without.
        curriculum: the lessons of this round and those before.
    """

    number: int
    step: int
    ended: bool
    parameters: Sequence[Tensor]
    optimizer: dict[str, Any]
    generator: Tensor
    stopping: dict[str, Any] | None
    curriculum: Curriculum

    @torch.no_grad()
    def restore(self, optimizer: torch.optim.Optimizer, stopping: EarlyStopping[Any] | None) -> None:
        """Put parameters, the optimizer's memory and the looks at validation prompts back."""
        for parameter, value in zip(parameters_of(optimizer), self.parameters, strict=True):
            parameter.copy_(value)
        optimizer.load_state_dict(self.optimizer)
        if stopping is not None and self.stopping is not None:
            stopping.load_state_dict(self.stopping)


class Checkpoints:
    """Positions in a folder, of which the latest stays.

    Args:
        folder: need not be there yet.
        key: of all that decides what is distilled.
        seconds: at least so many between two states, but where one is asked for; 0: one at every step.
    """

    def __init__(self, folder: Path, key: str, seconds: float = 120.0) -> None:
        self._folder, self._key, self._seconds = folder, key, seconds
        self._last = time.monotonic()
        self._took = 0.0
        self._lessons_of: int | None = None  # the round whose lessons are in the file

    @property
    def due(self) -> bool:
        """Whether enough time went by, and ten times what writing takes."""
        return self._seconds == 0 or time.monotonic() - self._last >= max(self._seconds, 10 * self._took)

    def read(self, device: torch.device | str = "cpu") -> Position | None:
        """The latest position; None where there is none, or none that can be read."""
        try:
            if not self._state.is_file():
                return None
            state = read_pickled_weights(self._state)
            position = Position(**state, curriculum=_read_lessons(self._lessons(state["number"]), device))
        except (MixshowError, KeyError, TypeError, ValueError) as error:
            log.warning("%s; distilling begins anew", error)
            return None
        self._lessons_of = position.number
        log.info("distilling goes on after %d steps", position.step)
        return position

    def write(
        self,
        number: int,
        step: int,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        curriculum: Curriculum,
        stopping: EarlyStopping[Any] | None,
        *,
        ended: bool = False,
    ) -> None:
        """Keep a position, whole or not at all, in place of the one before.

        Raises:
            MixshowError: the disk is full or the folder cannot be written.
        """
        lessons = self._lessons(number)
        start = time.monotonic()
        if self._lessons_of != number:  # what a run that could not be resumed left is of other lessons
            _write_lessons(lessons, curriculum)
            self._lessons_of = number
        state = {
            "number": number,
            "step": step,
            "ended": ended,
            "parameters": [parameter.detach() for parameter in parameters_of(optimizer)],
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "stopping": None if stopping is None else stopping.state_dict(),
        }
        with written_atomically(self._state) as temporary, temporary.open("wb") as file:
            torch.save(state, file)  # torch's own file writer reports a full disk as a programming error
        for other in self._folder.glob("distilled-*"):  # of rounds before, and of other options
            if other not in (lessons, self._state):
                with contextlib.suppress(OSError):
                    other.unlink()
        self._last = time.monotonic()
        self._took = self._last - start

    @property
    def _state(self) -> Path:
        return self._folder / f"distilled-{self._key}.pt"

    def _lessons(self, number: int) -> Path:
        return self._folder / f"distilled-{self._key}-lessons-{number}.safetensors"


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All that it moves."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _sets(curriculum: Curriculum) -> list[Lessons]:
    return [*curriculum.concepts, curriculum.empty, curriculum.ordinary]


def _write_lessons(path: Path, curriculum: Curriculum) -> None:
    sets = _sets(curriculum)
    tensors = {f"{number}.{name}": getattr(each, name) for number, each in enumerate(sets) for name in _TENSORS}
    about = {"prompts": [list(each.prompts) for each in sets], "scale": list(curriculum.scale.items())}
    write_safetensors(path, tensors, {"mixshow": json.dumps(about)})


def _read_lessons(path: Path, device: torch.device | str) -> Curriculum:
    tensors, metadata = read_safetensors(path)
    about = json.loads(metadata["mixshow"])
    sets = [
        Lessons(prompts=prompts, **{name: tensors[f"{number}.{name}"].to(device) for name in _TENSORS})
        for number, prompts in enumerate(about["prompts"])
    ]
    return Curriculum(sets[:-2], sets[-2], sets[-1], dict(about["scale"]))
