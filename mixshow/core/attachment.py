"""What is attached to a model comes off again, also after an error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, Self


class _Removable(Protocol):
    def remove(self) -> None: ...


class Attachment:
    """A set of undo steps. `detach()` runs them once, last first; leaving a `with` block detaches.

    Example:
        >>> undone = []
        >>> with Attachment(lambda: undone.append("hook")):
        ...     pass
        >>> undone
        ['hook']
    """

    def __init__(self, *undo: Callable[[], object]) -> None:
        self._stack = ExitStack()
        for step in undo:
            self._stack.callback(step)

    def add(self, undo: Callable[[], object]) -> None:
        """Add an undo step, run before the ones already there."""
        self._stack.callback(undo)

    def add_hook(self, hook: _Removable) -> None:
        """Add a torch hook handle."""
        self._stack.callback(hook.remove)

    def detach(self) -> None:
        """Undo everything; a second call does nothing."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()
