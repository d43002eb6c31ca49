"""Statistics in a file of their own, `NAME.stats.safetensors`, which can travel with a concept.

Tensors are keyed by the layer that reads them, those that several layers read by the first one's path. A moment is kept
as one half of it, in float64 for text features and else in float32, whose rounding is that of its products. JSON
metadata under the key `mixshow` says what the inputs are of (`Origin`) and which layer reads which tensor. Tensors stay
on the disk until a layer is solved, so that fusing needs the memory of some layers, not of many concepts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import write_safetensors
from mixshow.core.stored_tensor import StoredTensor, stored_tensors
from mixshow.fusion.half import HalfMoment, packed, unpacked
from mixshow.fusion.origin import Origin
from mixshow.fusion.statistics import SINGLE_RESOLUTION, LayerInputs, LayerStatistics
from mixshow.fusion.wide import KeptRows

FORMAT, FORMAT_VERSION = "mixshow.statistics", 1
SUFFIX = ".stats.safetensors"
KEPT = "statistics"  # the folder in a fused model where those it was solved from are kept
_NEGATIVE = 1e-4  # of the largest square: a moment that is less than positive by more was never one

Form = Literal["packed", "channels", "rows"]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredInputs:
    """Inputs of some layers, in a file.

    Attributes:
        place: of the tensor in its file.
        key: of the tensor.
        form: half of the moment; moments by channel, of a normalisation; rows.
        width: of the input, with the constant 1 where there is one.
        rows: number of rows that flowed through the layer.
        resolution: see `LayerStatistics`.
        without_constant: the last column, of the constant 1, is left out when loading.
        channels: of a normalisation.
        device: where `moment` puts it.
    """

    place: StoredTensor
    key: str
    form: Form
    width: int
    rows: int
    resolution: float
    channels: int = 1
    without_constant: bool = False
    device: torch.device | str = "cpu"

    @property
    def shape(self) -> torch.Size:
        """Of the moment."""
        width = self.width - self.without_constant
        return torch.Size((self.channels, width, width) if self.form == "channels" else (width, width))

    @property
    def moment(self) -> Tensor:
        """The moment of all rows, read from the file."""
        return self.load(self.device).moment

    def load(self, device: torch.device | str = "cpu") -> HalfMoment | LayerStatistics | KeptRows:
        """Read it, in the file's precision.

        Raises:
            MixshowError: the file is no longer there, or damaged.
        """
        try:
            stored = self.place.read().to(device)
        except OSError as error:
            raise MixshowError(
                f"{self.place.path}: cannot be read ({error}); run again; if that does not help record it again"
            ) from error
        kept = slice(0, self.width - self.without_constant)
        if self.form == "rows":
            return KeptRows(stored[:, kept], self.rows, self.resolution)
        if self.form == "channels":
            return LayerStatistics(stored[..., kept, kept].double(), self.rows, self.resolution)
        half = packed(unpacked(stored)[kept, kept]) if self.without_constant else stored
        return HalfMoment(half, self.rows, self.resolution)


@dataclasses.dataclass(frozen=True, eq=False)
class StatisticsFile:
    """A file of statistics, its tensors not read yet.

    Attributes:
        layers: by module path.
        extended: paths of the layers whose inputs are followed by a constant 1.
    """

    path: Path
    origin: Origin
    layers: Mapping[str, StoredInputs]
    extended: frozenset[str]

    def check_numbers(self) -> None:
        """Read all of it once.

        Raises:
            MixshowError: values that are no numbers, or moments that no inputs give.
        """
        for name, each in {each.key: (name, each) for name, each in self.layers.items()}.values():
            problem = _numbers_problem(each.load())
            if problem:
                raise MixshowError(f"{self.path}: '{name}' holds {problem}; record it again, in float32")


def _numbers_problem(inputs: HalfMoment | LayerStatistics | KeptRows) -> str | None:
    if isinstance(inputs, KeptRows):
        return None if inputs.kept.isfinite().all() else "values that are no numbers"
    if not (inputs.half if isinstance(inputs, HalfMoment) else inputs.moment).isfinite().all():
        return "values that are no numbers"
    # Single precision takes a fraction of the time, and what it finds positive is so to within `_NEGATIVE`.
    if isinstance(inputs, HalfMoment) and not _negative(inputs.lower.float()):
        return None
    return "a moment with negative eigenvalues, which no inputs give" if _negative(inputs.moment.clone()) else None


def _negative(moment: Tensor) -> bool:
    """Whether a moment `[..., in, in]` has eigenvalues clearly below 0; its lower triangle counts, and is changed."""
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    diagonal += _NEGATIVE * diagonal.amax(-1, keepdim=True).clamp(min=torch.finfo(moment.dtype).tiny)
    return bool(torch.linalg.cholesky_ex(moment)[1].any())


def write_statistics(
    path: Path | str, statistics: Mapping[str, LayerInputs], origin: Origin, extended: Collection[str] = ()
) -> None:
    """Write statistics, whole or not at all.

    Args:
        statistics: by module path; layers that read the same hold the same object.
        extended: paths of the layers whose inputs are followed by a constant 1.

    Raises:
        MixshowError: the disk is full or the place cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    inputs: dict[str, dict[str, Any]] = {}
    keys: dict[int, str] = {}
    for name, each in statistics.items():
        key = keys.setdefault(id(each), name)
        if key == name:
            tensors[key], inputs[key] = _stored(each)
    about = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        **origin.to_json(),
        "inputs": inputs,
        "layers": {name: keys[id(each)] for name, each in statistics.items()},
        "extended": sorted(set(extended) & set(statistics)),
    }
    write_safetensors(path, tensors, {"mixshow": json.dumps(about)})


def _stored(inputs: LayerInputs) -> tuple[Tensor, dict[str, Any]]:
    about: dict[str, Any] = {"rows": inputs.rows, "resolution": inputs.resolution}
    if isinstance(inputs, KeptRows):
        return inputs.kept, {"form": "rows", "width": inputs.width, **about}
    moment = inputs.moment
    moment = moment.float() if inputs.resolution >= SINGLE_RESOLUTION else moment.double()
    if moment.dim() == 3:
        return moment, {"form": "channels", "width": moment.shape[-1], "channels": len(moment), **about}
    return packed(moment), {"form": "packed", "width": moment.shape[-1], **about}


def open_statistics(path: Path | str) -> StatisticsFile:
    """Look into a file of statistics.

    Raises:
        MixshowError: it is missing, truncated, no such file, or of a version this program does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise MixshowError(f"{path}: no such file; `mixshow statistics` writes one")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = json.loads((file.metadata() or {}).get("mixshow", "{}"))
        places = stored_tensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise MixshowError(f"{path}: expected statistics, found something else or half a file ({error})") from error
    if about.get("format") != FORMAT:
        raise MixshowError(f"{path}: expected statistics of `mixshow statistics`, found another safetensors file")
    if about.get("version") != FORMAT_VERSION:
        raise MixshowError(
            f"{path}: expected statistics of version {FORMAT_VERSION}, found version {about.get('version')}; record "
            "them again with this program"
        )
    try:
        missing = set(about["inputs"]) - set(places)
        if missing:
            raise MixshowError(f"{path}: tensors are missing, such as '{min(missing)}'; record it again")
        found = {key: StoredInputs(places[key], key, **each) for key, each in about["inputs"].items()}
        layers = {name: found[key] for name, key in about["layers"].items()}
        origin, extended = Origin.from_json(about), frozenset(about["extended"])
    except (KeyError, TypeError, AttributeError) as error:
        raise MixshowError(f"{path}: its metadata is damaged ({error!r}); record the statistics again") from error
    return StatisticsFile(path, origin, layers, extended)
