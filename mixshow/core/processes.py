"""The processes of one command, as `accelerate launch` starts them: what each does, and what they tell each other."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those that do the same work.

    Attributes:
        index: its number, from 0.
        count: of all.

    Example:
        >>> Processes.alone().gathered("x")
        ['x']
    """

    index: int
    count: int

    @classmethod
    def alone(cls) -> Processes:
        """One process that does everything."""
        return cls(0, 1)

    @classmethod
    def launched(cls) -> Processes:
        """Those that a launcher started together, connected; without a launcher this one alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return cls.alone()
        from accelerate import PartialState

        # Without a GPU accelerate takes several processes for so many single ones unless it is told.
        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.index == 0

    def part(self, offset: int = 0) -> slice:
        """Every so-manieth of a list, so that each of its elements is one process's.

        Args:
            offset: turns the processes, so that of several short lists not always the same one gets most.
        """
        return slice((self.index - offset) % self.count, None, self.count)

    def gathered(self, own: T) -> list[T]:
        """What every process has, in the order of their numbers; every process must take part."""
        if self.count == 1:
            return [own]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, own)
        return found

    def add(self, tensor: Tensor) -> None:
        """Put the sum over all processes in the place of a tensor of equal shape in each."""
        if self.count > 1:
            torch.distributed.all_reduce(tensor)

    def part_ways(self) -> None:
        """Nothing is said between the processes any more; each goes on by itself."""
        if self.count > 1:
            torch.distributed.destroy_process_group()
