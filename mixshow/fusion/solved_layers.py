"""Solved layers in files, so that an interrupted fusion goes on with those that are left.

Layers that are solved together are one safetensors file: their changes, S where it is wanted, and as JSON metadata what
the solver said. A file's name tells what it was solved from, so that nothing else is taken for it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixshow.core.files import write_safetensors
from mixshow.core.progress import log
from mixshow.fusion.solvers import Outcome, Status
from mixshow.fusion.solvers.outcome import ConstraintFit

_COORDINATES, _BASIS, _METRIC = "coordinates.", "basis.", "metric."


@dataclasses.dataclass(frozen=True, eq=False)
class Solved:
    """One layer's solution.

    Attributes:
        metric: S, `[in, in]`, where it was asked for.
    """

    outcome: Outcome
    metric: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class SolvedLayers:
    """Solutions in a folder.

    Attributes:
        folder: where they lie; it need not be there yet.
        key: of all that decides them, but which layers they are of.
    """

    folder: Path
    key: str

    def read(self, names: Collection[str], *, metrics: bool, device: torch.device | str = "cpu") -> dict[str, Solved]:
        """Those of some layers that are there, by module path; files that cannot be read are passed over.

        Args:
            metrics: S is wanted; layers without it count as unsolved.
        """
        found: dict[str, Solved] = {}
        for path in sorted(self.folder.glob(f"{self._start}*.safetensors")):
            try:
                found |= {each.outcome.name: each for each in _read(path, set(names), metrics, device)}
            except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
                log.warning("%s: cannot be read (%s); its layers are solved again", path, error)
        return found

    def write(self, part: Sequence[Solved]) -> None:
        """Keep layers that were solved together, whole or not at all.

        Raises:
            MixshowError: the disk is full or the folder cannot be written.
        """
        names = [each.outcome.name for each in part]
        shared: dict[int, str] = {}  # layers that read the same have the same S
        tensors: dict[str, Tensor] = {}
        about: list[dict[str, Any]] = []
        for each in part:
            name = each.outcome.name
            tensors[_COORDINATES + name] = each.outcome.coordinates
            if each.outcome.basis is not None:
                tensors[_BASIS + name] = each.outcome.basis
            if each.metric is not None and id(each.metric) not in shared:
                shared[id(each.metric)] = name
                tensors[_METRIC + name] = each.metric
            metric = None if each.metric is None else shared[id(each.metric)]
            about.append({"outcome": _plain(each.outcome), "metric": metric})
        path = self.folder / f"{self._start}{digest(names)}.safetensors"
        write_safetensors(path, tensors, {"mixshow": json.dumps(about)})

    @property
    def _start(self) -> str:
        return f"solved-{self.key}-"


def digest(*parts: object) -> str:
    """A short hash of values that print alike wherever they are equal."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _plain(outcome: Outcome) -> dict[str, Any]:
    fields = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
    del fields["coordinates"]
    fit = outcome.constraints
    return {
        **fields,
        "basis": outcome.basis is not None,
        "status": outcome.status.name,
        "before": list(outcome.before),
        "after": list(outcome.after),
        "constraints": None if fit is None else dataclasses.asdict(fit),
    }


def _read(path: Path, names: Collection[str], metrics: bool, device: torch.device | str) -> Iterator[Solved]:
    with safe_open(path, framework="pt", device="cpu") as file:
        about = json.loads(file.metadata()["mixshow"])
        if any(each["outcome"]["name"] not in names or (metrics and each["metric"] is None) for each in about):
            return
        tensors: dict[str, Tensor] = {}

        def tensor(key: str) -> Tensor:
            if key not in tensors:
                tensors[key] = file.get_tensor(key).clone().to(device)  # a mapped tensor changes when its file does
            return tensors[key]

        for each in about:
            about_it, name = each["outcome"], each["outcome"]["name"]
            basis = tensor(_BASIS + name) if about_it["basis"] else None
            outcome = _outcome({**about_it, "basis": basis}, tensor(_COORDINATES + name))
            yield Solved(outcome, tensor(_METRIC + each["metric"]) if metrics else None)


def _outcome(fields: Mapping[str, Any], coordinates: Tensor) -> Outcome:
    fit = fields["constraints"]
    own = {**fields, "status": Status[fields["status"]], "constraints": None if fit is None else ConstraintFit(**fit)}
    return Outcome(coordinates=coordinates, **own)
