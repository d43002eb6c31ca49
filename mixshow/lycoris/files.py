"""Network files of all programs read into tensors by module of a base; written as kohya's and LyCORIS's safetensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mixshow.core.errors import MixshowError
from mixshow.core.files import write_safetensors
from mixshow.lycoris import cloneofsimo, peft_names
from mixshow.lycoris.containers import read_tensors
from mixshow.lycoris.metadata import with_hashes
from mixshow.lycoris.naming import OFT_PREFIX, NameIndex

_TEXT_ENCODER = re.compile(r"lora_te([12]?)_")
MissingAlpha = Literal["error", "rank"]
# Tensors of embeddings inside network files: kohya's bundles, this program's concept files.
_EMBEDDINGS = ("bundle_emb.", "mixshow.embedding.")


@dataclasses.dataclass(frozen=True)
class NetworkFile:
    """What a network file holds, in terms of one base.

    Attributes:
        modules: by the module's file name, its tensors without that name in front. `alpha`, where the algorithm has
            one, is a finite 0-d float32 tensor and comes first.
        metadata: of the file.
        embeddings: tensors that belong to no module, under the names they have in the file.
    """

    modules: dict[str, dict[str, Tensor]]
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    embeddings: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)


def read_network_file(
    source: Path | str | Mapping[str, Tensor],
    models: Mapping[str, nn.Module] | NameIndex,
    *,
    missing_alpha: MissingAlpha = "error",
) -> NetworkFile:
    """Read a network file, or take its tensors, and find the modules it is for.

    Names may be diffusers' or SGM's, with or without `text_model_`, under the prefixes of sd-scripts and LyCORIS;
    dotted paths of diffusers and PEFT; or numbers, as in files of the early `lora_diffusion` program.

    Args:
        source: a file, a folder with one, or its tensors.
        missing_alpha: what a module without alpha means, where its algorithm has one: `error`, because its strength
            is unknown; `rank`, a scale of 1 (of a rotation no constraint), which is what most programs take it for.

    Raises:
        MixshowError: no readable file; names that mean no module of the base, or two that mean the same one; tensors
            of other things than finite numbers; a scale that cannot be known. The first ten names are in the message.
    """
    tensors, metadata = (source, {}) if isinstance(source, Mapping) else read_tensors(source)
    label = "network" if isinstance(source, Mapping) else str(source)
    index = models if isinstance(models, NameIndex) else NameIndex(models)
    try:
        if cloneofsimo.recognises(tensors):
            tensors = cloneofsimo.named(tensors, metadata, index)
        elif peft_names.recognises(tensors):
            tensors = peft_names.named(tensors, metadata, index)
        return NetworkFile(_by_module(tensors, index, missing_alpha), metadata, _embeddings(tensors))
    except MixshowError as error:
        raise MixshowError(f"{label}: {error}") from error


def write_network_file(
    path: Path | str,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    dtype: torch.dtype | None = None,
    sgm: NameIndex | None = None,
) -> None:
    """Write a network file that kohya's programs and LyCORIS read, with the hashes they look for.

    Args:
        tensors: by `<module>.<tensor>`.
        metadata: see `metadata.network_metadata`.
        dtype: of the tensors on disk; scales stay float32, which half precision would turn infinite.
        sgm: the names of a base whose UNet's modules are written under SGM's names, as most programs expect for XL.

    Raises:
        MixshowError: the disk is full or the place cannot be written.
    """
    written = {}
    for key, tensor in tensors.items():
        name, _, part = key.partition(".")
        kept = part == "alpha" or not tensor.is_floating_point() or dtype is None
        tensor = tensor.detach().to("cpu", None if kept else dtype).contiguous()
        written[f"{sgm.sgm(name) if sgm else name}.{part}"] = tensor
    write_safetensors(path, written, with_hashes(written, metadata))


def _embeddings(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.startswith(_EMBEDDINGS)}


def _by_module(
    tensors: Mapping[str, Tensor], index: NameIndex, missing_alpha: MissingAlpha
) -> dict[str, dict[str, Tensor]]:
    """Raises MixshowError as `read_network_file` does."""
    modules: dict[str, dict[str, Tensor]] = {}
    spelled: dict[str, str] = {}
    unknown: dict[str, None] = {}
    for key, tensor in tensors.items():
        if key.startswith(_EMBEDDINGS):
            continue
        written, _, part = key.partition(".")
        name = index.find(written)
        if name is None or not part:
            unknown[written if part else key] = None
            continue
        if spelled.setdefault(name, written) != written:
            raise MixshowError(f"'{spelled[name]}' and '{written}' mean the same module; keep one of them")
        modules.setdefault(name, {})[part] = tensor
    if unknown:
        verb = "names" if len(unknown) == 1 else "name"
        raise MixshowError(f"{_listed(unknown)} {verb} no module of this base{_reason(unknown, index)}")
    broken = [
        f"{name}.{part}"
        for name, parts in modules.items()
        for part, tensor in parts.items()
        if part != "alpha" and not tensor.isfinite().all()
    ]
    if broken:
        raise MixshowError(f"{_listed(broken)} hold values that are no numbers; the training that wrote them failed")
    _check_scales(modules, missing_alpha)
    return {
        name: _with_plain_scale(parts, of_sd_scripts=spelled[name].startswith(OFT_PREFIX))
        for name, parts in modules.items()
    }


# Tensors with an axis as long as the rank, in the order of looking.
_RANK_AXES = {
    "lora_down.weight": 0, "hada_w1_b": 0, "lokr_w2_b": 0, "lokr_w1_b": 0, "a2.weight": 0, "lambda_layer": -1
}  # fmt: skip


def _usual_alpha(parts: Mapping[str, Tensor]) -> float | None:
    """The alpha that most programs take a module without one to have; None: its algorithm has none."""
    if "oft_blocks" in parts:
        return 0.0  # there it is a constraint, and 0 is none
    rank = next((parts[part].shape[axis] for part, axis in _RANK_AXES.items() if part in parts), None)
    return None if rank is None else float(rank)


def _without_scale(parts: Mapping[str, Tensor]) -> bool:
    """Whether a module's scale is 1 whatever its alpha."""
    return {"lokr_w1", "lokr_w2"} <= set(parts)


def _check_scales(modules: Mapping[str, Mapping[str, Tensor]], missing_alpha: MissingAlpha) -> None:
    """Raises MixshowError where a module's scale cannot be known, naming all such modules."""
    scaled = {name: parts for name, parts in modules.items() if not _without_scale(parts)}
    alphas = {f"{name}.alpha": parts["alpha"] for name, parts in scaled.items() if "alpha" in parts}
    several = {key: list(alpha.shape) for key, alpha in alphas.items() if alpha.numel() != 1}
    if several:
        shape = next(iter(several.values()))
        raise MixshowError(f"{_listed(several)}: expected one number, found a tensor of shape {shape}")
    lost = {key: float(alpha) for key, alpha in alphas.items() if not alpha.isfinite()}
    if lost:
        raise MixshowError(
            f"{_listed(lost)} {'is' if len(lost) == 1 else 'are'} {next(iter(lost.values()))}: written in half "
            "precision, the scale is lost; write alpha as float32, or remove it and load the file with "
            "missing_alpha=rank for a scale of 1"
        )
    missing = [name for name, parts in scaled.items() if "alpha" not in parts and _usual_alpha(parts) is not None]
    if missing and missing_alpha != "rank":
        raise MixshowError(
            f"{_listed(missing)} {'has' if len(missing) == 1 else 'have'} no tensor 'alpha', so that the strength is "
            "unknown; where the program that wrote the file means the rank by that, as most do, load it with "
            "missing_alpha=rank"
        )


def _with_plain_scale(parts: Mapping[str, Tensor], *, of_sd_scripts: bool) -> dict[str, Tensor]:
    """A module's tensors, checked before, with `alpha` as a finite 0-d float32 tensor where the algorithm has one."""
    others = {part: tensor for part, tensor in parts.items() if part != "alpha"}
    found, usual = parts.get("alpha"), 1.0 if _without_scale(parts) else _usual_alpha(parts)
    if found is None and usual is None:
        return others
    alpha = torch.tensor(usual) if found is None else found.detach().flatten()[:1].reshape(()).float()
    if not alpha.isfinite():
        alpha = torch.ones(())  # it has no meaning
    if of_sd_scripts and alpha == 0 and "oft_blocks" in others:
        # Here 0 is no constraint; for the program that writes this prefix it holds the rotation at the identity.
        others["oft_blocks"] = torch.zeros_like(others["oft_blocks"])
    return {"alpha": alpha, **others}


def _listed(names: Iterable[str], most: int = 10) -> str:
    """`'a', 'b' and 7 more`"""
    names = list(names)
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _reason(unknown: Iterable[str], index: NameIndex) -> str:
    """Why a file's names may be unknown."""

    def text_encoders(names: Iterable[str]) -> set[str]:
        return {match[1] for match in map(_TEXT_ENCODER.match, names) if match}

    wanted, known = text_encoders(unknown), text_encoders(index.modules)
    if "2" in wanted and known == {""}:
        return "; the file was made for Stable Diffusion XL"
    if wanted and not known:
        return "; give the text encoder as well"
    return "; the file was made for another one, or by a program whose names are not known here"
