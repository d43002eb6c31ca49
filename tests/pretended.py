"""An accelerator that is not there, for machines without one: tests run on it by `pytest -p tests.pretended`.

Its tensors lie in the CPU's memory, say that they are on a device of their own, and refuse what a real accelerator
would refuse: to meet tensors on the CPU, to draw from the CPU's generators, to be read as NumPy arrays. Where options
leave the device open it is taken, by training too. What it computes is what the CPU computes, at the CPU's speed.

PyTorch calls backends in Python experimental; this rests on `torch.Tensor._make_wrapper_subclass` and on
`torch.utils.backend_registration`, and is for tests alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

from mixshow.models import device

NAME = "pretended"
_ATEN = torch.ops.aten
_ACROSS = {_ATEN.copy_.default, _ATEN._to_copy.default}  # between devices
_INDEXED = {_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default, _ATEN._index_put_impl_.default}


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)


class PretendedTensor(Tensor):
    """A tensor of the device; `memory` is where it lies."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    memory: Tensor

    @staticmethod
    def __new__(cls, memory: Tensor) -> PretendedTensor:
        made: PretendedTensor = Tensor._make_wrapper_subclass(
            cls, memory.shape, strides=memory.stride(), storage_offset=memory.storage_offset(), dtype=memory.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.memory = memory
        return made

    def __init__(self, memory: Tensor) -> None: ...

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return PretendedTensor(self.memory)

    @data.setter
    def data(self, value: PretendedTensor) -> None:
        torch._C.TensorBase.data.__set__(self, value)  # type: ignore[attr-defined]
        self.memory = value.memory

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.memory.untyped_storage()

    def tolist(self) -> Any:
        return self.memory.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.memory.detach().__reduce_ex__(protocol)  # as from a file that is loaded onto the CPU

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"pretended {self.memory!r}"


class Pretending(TorchDispatchMode):
    """Within it tensors can be made on the device."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wanted = kwargs.get("device")
        there = wanted is not None and torch.device(wanted).type == NAME
        if there or any(isinstance(each, PretendedTensor) for each in tree_leaves((args, kwargs))):
            return _run(operation, args, kwargs)
        return operation(*args, **kwargs)


def _run(operation: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operation in the CPU's memory, its results back on the device.

    Raises:
        RuntimeError: it is of several devices.
    """
    given = tree_leaves((args, kwargs))
    wanted = kwargs.get("device")
    own = [each for each in given if isinstance(each, PretendedTensor)]
    there = bool(own) if wanted is None else torch.device(wanted).type == NAME
    _refuse(operation, own, given, there)
    at_hand: dict[int, PretendedTensor] = {}

    def to_memory(value: Any) -> Any:
        if isinstance(value, PretendedTensor):
            at_hand[id(value.memory)] = value
            return value.memory
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def to_device(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, PretendedTensor) or not there:
            return value
        changed = at_hand.get(id(value))
        if changed is None:
            return PretendedTensor(value)
        if changed.shape != value.shape or changed.stride() != value.stride():
            changed.data = PretendedTensor(value)
        return changed

    own_kwargs = {**tree_map(to_memory, kwargs), **({"pin_memory": False} if "pin_memory" in kwargs else {})}
    return tree_map(to_device, operation(*tree_map(to_memory, args), **own_kwargs))


def _refuse(operation: Any, own: Sequence[Tensor], given: Sequence[Any], there: bool) -> None:
    if own and operation not in _ACROSS | _INDEXED:
        others = [each for each in given if isinstance(each, Tensor) and not isinstance(each, PretendedTensor)]
        if any(each.dim() > 0 for each in others):
            raise RuntimeError(f"{operation}: expected all tensors on one device, found {DEVICE} and cpu")
    generators = [each for each in given if isinstance(each, torch.Generator)]
    if there and any(each.device.type != NAME for each in generators):
        raise RuntimeError(f"{operation}: expected a generator of {DEVICE}, found one of the CPU")


# What operations of the CPU make and fill by themselves, below the mode.


@torch.library.impl("aten::empty_strided", "privateuseone")
def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return PretendedTensor(torch.empty_strided(size, stride, dtype=dtype))


@torch.library.impl("aten::empty.memory_format", "privateuseone")
def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    return PretendedTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


@torch.library.impl("aten::_copy_from", "privateuseone")
def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    memory = [each.memory if isinstance(each, PretendedTensor) else each for each in (source, target)]
    memory[1].copy_(memory[0])
    return target


# The plugin: loaded before anything that imports `device_named` by its name.

PartialState.default_device = property(lambda _: DEVICE)  # what training runs on
_device_named = device.device_named


def _chosen(name: str) -> torch.device:
    return DEVICE if name == "auto" else _device_named(name)


device.device_named = _chosen


@pytest.fixture(autouse=True)
def _pretending() -> Iterator[None]:
    with Pretending():
        yield
