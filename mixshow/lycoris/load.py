"""Networks from files: algorithm, ranks and geometry come from the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mixshow.core.errors import MixshowError, OptionsError, did_you_mean
from mixshow.core.progress import log
from mixshow.lycoris.algorithm import Algorithm, weight_of
from mixshow.lycoris.files import MissingAlpha, read_network_file
from mixshow.lycoris.metadata import options_of, options_told
from mixshow.lycoris.naming import NameIndex
from mixshow.lycoris.network import Network
from mixshow.lycoris.registry import ALGORITHMS, algorithm_of, checked_options

_MOST = 10  # problems in one message


def load_network(
    models: Mapping[str, nn.Module],
    source: Path | str | Mapping[str, Tensor],
    *,
    multiplier: float = 1.0,
    missing_alpha: MissingAlpha = "error",
    options: Mapping[str, Any] | None = None,
) -> Network:
    """A network from a file or its tensors, in evaluation mode (without dropouts).

    Args:
        models: by the names `unet`, `text_encoder`, `text_encoder_2`; any other name for any other model.
        source: a network file of any program (`read_network_file`), or its tensors, of which there may be none.
        missing_alpha: `rank` reads modules without alpha as most programs do, with a scale of 1; `error` refuses
            them. Algorithms that have none are not concerned.
        options: what the tensors do not tell and the algorithm still needs (T-LoRA's `min_rank` and `rank_power`), one
            value or values by file name; None: as the file's metadata tells. What is told nowhere is left out.

    Raises:
        MixshowError: an option that is none of these; a key names no module of the models; tensors of no known
            algorithm, of several on one module, or of other widths; an alpha is missing or infinite. All such modules
            are named, ten at most. The models are left as they were.
    """
    index = NameIndex(models)
    contents = read_network_file(source, index, missing_alpha=missing_alpha)
    grouped = contents.modules
    if not grouped and not isinstance(source, Mapping):
        raise MixshowError(f"{source}: expected tensors of a network, '<module>.<name>', found none")
    if contents.embeddings and not isinstance(source, Mapping):
        log.info("%s: only its network is used, its embeddings are not: %s", source, ", ".join(contents.embeddings))
    told = options_told(contents.metadata) if options is None else _checked(options)
    adapters: dict[str, Algorithm] = {}
    problems: list[str] = []
    for name, parts in grouped.items():
        try:
            adapters[name] = _adapter(parts, index.modules[name], options_of(told, name))
        except MixshowError as error:
            problems.append(f"'{name}': {error}")
    if problems:
        more = [f"{len(problems) - _MOST} more modules do not fit either"] if len(problems) > _MOST else []
        raise OptionsError("network" if isinstance(source, Mapping) else str(source), [*problems[:_MOST], *more])
    network = Network(models, adapters, multiplier)
    network.eval()
    return network


def _checked(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises MixshowError where no algorithm takes an option along with its tensors."""
    known = [option for kind in ALGORITHMS.values() for option in kind.file_options]
    for option in options:
        if option not in known:
            raise MixshowError(
                f"network: option '{option}' does not go with a file's tensors{did_you_mean(option, known)}"
            )
    return options


def _adapter(parts: Mapping[str, Tensor], module: nn.Module, told: Mapping[str, Any]) -> Algorithm:
    kind = algorithm_of(parts)
    if kind is None:
        raise MixshowError(f"tensors {', '.join(sorted(parts))} belong to no known algorithm")
    weight = weight_of(module)
    own = checked_options(kind, {option: told[option] for option in kind.file_options if option in told})
    try:
        adapter = kind.from_tensors(parts, module, **own)
    except KeyError as error:
        raise MixshowError(f"expected a tensor {error} of algorithm '{kind.name}', found {', '.join(parts)}") from error
    unknown = set(parts) - set(adapter.tensors()) - {"alpha"}
    if unknown:
        raise MixshowError(f"tensors {', '.join(sorted(unknown))} are none of algorithm '{kind.name}'")
    return adapter.to(weight.device)
