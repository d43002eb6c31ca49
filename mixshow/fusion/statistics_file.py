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
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mixshow.core.errors import MixshowError
from mixshow.core.files import write_safetensors
from mixshow.fusion.origin import Origin
from mixshow.fusion.statistics import SINGLE_RESOLUTION, LayerInputs, LayerStatistics
from mixshow.fusion.wide import KeptRows

FORMAT, FORMAT_VERSION = "mixshow.statistics", 1
SUFFIX = ".stats.safetensors"
_NEGATIVE = 1e-4  # of the largest square: a moment that is less than positive by more was never one

Form = Literal["packed", "channels", "rows"]


@dataclasses.dataclass(frozen=True, eq=False)
class StoredInputs:
    """Inputs of some layers, in a file.

    Attributes:
        path: of the file.
        key: of the tensor.
        form: half of the moment; moments by channel, of a normalisation; rows.
        width: of the input, with the constant 1 where there is one.
        rows: number of rows that flowed through the layer.
        resolution: see `LayerStatistics`.
        without_constant: the last column, of the constant 1, is left out when loading.
        channels: of a normalisation.
        device: where `moment` puts it.
    """

    path: Path
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

    def load(self, device: torch.device | str = "cpu") -> LayerStatistics | KeptRows:
        """Read it.

        Raises:
            MixshowError: the file is no longer there, or damaged.
        """
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                stored = file.get_tensor(self.key).clone()  # a mapped tensor changes when its file does
        except (SafetensorError, OSError) as error:
            raise MixshowError(f"{self.path}: cannot be read ({error}); record it again") from error
        stored = stored.to(device)
        kept = slice(0, self.width - self.without_constant)
        if self.form == "rows":
            return KeptRows(stored[:, kept], self.rows, self.resolution)
        moment = (unpacked(stored) if self.form == "packed" else stored).double()
        return LayerStatistics(moment[..., kept, kept], self.rows, self.resolution)


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
            inputs = each.load()
            problem = _numbers_problem(inputs.kept if isinstance(inputs, KeptRows) else inputs.mean, each.form)
            if problem:
                raise MixshowError(f"{self.path}: '{name}' holds {problem}; record it again, in float32")


def _numbers_problem(values: Tensor, form: Form) -> str | None:
    if not values.isfinite().all():
        return "values that are no numbers"
    if form == "rows":
        return None
    squares = values.diagonal(dim1=-2, dim2=-1)
    shift = _NEGATIVE * squares.amax(-1)[..., None, None].clamp(min=torch.finfo(values.dtype).tiny)
    shifted = values + shift * torch.eye(values.shape[-1]).to(values)
    failed = torch.linalg.cholesky_ex(shifted)[1]
    return "a moment with negative eigenvalues, which no inputs give" if bool(failed.any()) else None


def packed(moment: Tensor) -> Tensor:
    """Half of a symmetric matrix `[n, n]`, as `[n + 1, ceil(n / 2)]` (rectangular full packed form, Gustavson 2010).

    Below are the off-diagonal block and, one row apart in one square, the lower triangle of the first diagonal block
    and the upper one of the second, so that whole blocks are copied, which is much faster than picking elements.
    """
    first = (len(moment) + 1) // 2
    second = F.pad(moment[first:, first:], (0, 2 * first - len(moment), 0, 2 * first - len(moment)))
    triangles = F.pad(moment[:first, :first].tril(), (0, 0, 1, 0)) + F.pad(second.triu(), (0, 0, 0, 1))
    return torch.cat([moment[first:, :first], triangles])


def unpacked(packed: Tensor) -> Tensor:
    """The symmetric matrix `[n, n]` of its packed half."""
    width, first = len(packed) - 1, packed.shape[1]
    block, triangles = packed[: width - first], packed[width - first :]
    lower, upper = triangles[1:].tril(), triangles[:-1].triu()[: width - first, : width - first]
    matrix = packed.new_empty(width, width)
    matrix[:first, :first] = lower + lower.tril(-1).mT
    matrix[first:, first:] = upper + upper.triu(1).mT
    matrix[first:, :first], matrix[:first, first:] = block, block.mT
    return matrix


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
            names = set(file.keys())
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
        found = {key: StoredInputs(path, key, **each) for key, each in about["inputs"].items()}
        layers = {name: found[key] for name, key in about["layers"].items()}
        origin, extended = Origin.from_json(about), frozenset(about["extended"])
    except (KeyError, TypeError, AttributeError) as error:
        raise MixshowError(f"{path}: its metadata is damaged ({error!r}); record the statistics again") from error
    if not set(found) <= names:
        raise MixshowError(f"{path}: tensors are missing, such as '{min(set(found) - names)}'; record it again")
    return StatisticsFile(path, origin, layers, extended)
