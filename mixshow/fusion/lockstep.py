"""Many passes through one model side by side: each waits at every chosen module until all have come there.

So a layer can be looked at, and changed, on all inputs at once, before any pass goes on to the next one. Only what the
passes hold where they wait is in memory: what a single large batch would take at its worst place is needed for one
pass at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any

from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from mixshow.core.attachment import Attachment


@dataclasses.dataclass(eq=False)
class Waiting:
    """A pass that waits at a module.

    Attributes:
        name: of the module.
        input: what it read.
        output: what it made of it; the pass goes on with what is put here.
    """

    name: str
    input: Tensor
    output: Tensor


def lockstep(
    modules: Mapping[str, nn.Module], passes: Sequence[Callable[[], object]]
) -> Generator[tuple[str, list[Waiting]], None, None]:
    """Run passes, yielding at every module, in the order in which they come there, what all passes wait with.

    The passes run in this thread, one at a time. Whatever ends the iteration ends them and takes the hooks off.

    Args:
        modules: by name, at which to wait.
        passes: each runs the same model on inputs of its own; all must come to the same modules in the same order.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> inputs = [torch.ones(1, 2), torch.zeros(1, 2)]
        >>> for name, waiting in lockstep({"layer": layer}, [partial(layer, each) for each in inputs]):
        ...     print(name, [each.input.sum().item() for each in waiting])
        layer [2.0, 0.0]
    """
    running = [greenlet(run) for run in passes]
    with Attachment() as attachment:
        for name, module in modules.items():
            attachment.add_hook(module.register_forward_hook(partial(_wait, name)))
        for each in running:
            attachment.add(partial(_end, each))
        while waiting := [each for each in [one.switch() for one in running] if isinstance(each, Waiting)]:
            names = {each.name for each in waiting}
            assert len(names) == 1 and len(waiting) == len(running), f"passes came to different modules: {names}"
            yield names.pop(), waiting
            del waiting  # nothing but the passes themselves holds what they wait with


def _wait(name: str, _: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
    waiting = Waiting(name, arguments[0], output)
    own = getcurrent()
    assert own.parent is not None
    own.parent.switch(waiting)
    return waiting.output


def _end(own: greenlet) -> None:
    """Unwind a pass that waits."""
    if own and not own.dead:
        own.throw()
