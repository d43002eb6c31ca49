"""All algorithms, by the name options use, by the tensors that tell them in a file, and with their options."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.lycoris.algorithm import Algorithm
from mixshow.lycoris.boft import BOFT
from mixshow.lycoris.diag_oft import DiagOFT
from mixshow.lycoris.dropout import DROPOUT_OPTIONS, Dropouts
from mixshow.lycoris.dylora import DyLoRA
from mixshow.lycoris.full import Full
from mixshow.lycoris.glokr import GLoKr
from mixshow.lycoris.glora import GLoRA
from mixshow.lycoris.ia3 import IA3
from mixshow.lycoris.locon import LoCon
from mixshow.lycoris.loha import LoHa
from mixshow.lycoris.lokr import LoKr
from mixshow.lycoris.norm import Norm
from mixshow.lycoris.tlora import TLoRA

# Options under the names that other programs give them.
OPTION_ALIASES = {
    "dora_wd": "weight_decompose",
    "wd_on_output": "wd_on_out",
    "use_cp": "use_tucker",
    "use_conv_cp": "use_tucker",
    "constrain": "constraint",
}
_OF_THE_NETWORK = ("dim", "alpha")


def _by_name(kinds: Iterable[type[Algorithm]]) -> dict[str, type[Algorithm]]:
    """Refuses names in capitals or used twice, and options that `create` does not take."""
    found: dict[str, type[Algorithm]] = {}
    taken: set[str] = set()
    for kind in kinds:
        for name in (kind.name, *kind.aliases):
            if name != name.lower() or name in taken:
                raise TypeError(f"{kind.__name__}: the name '{name}' is taken or not in lower case")
            taken.add(name)
        parameters = set(inspect.signature(kind.create).parameters) - {"module", *_OF_THE_NETWORK}
        if parameters != set(kind.options):
            raise TypeError(f"{kind.__name__}: describes options {sorted(kind.options)}, takes {sorted(parameters)}")
        found[kind.name] = kind
    return found


# In the order in which help lists them.
ALGORITHMS: dict[str, type[Algorithm]] = _by_name(
    (LoCon, LoHa, LoKr, IA3, DyLoRA, GLoRA, GLoKr, Full, Norm, DiagOFT, BOFT, TLoRA)
)
NAMES: dict[str, type[Algorithm]] = {name: kind for kind in ALGORITHMS.values() for name in (kind.name, *kind.aliases)}


def algorithm_named(name: str) -> type[Algorithm]:
    """The algorithm of a name or alias.

    Raises:
        MixshowError: there is none.
    """
    spelled = str(name).lower().replace("_", "-")
    if spelled not in NAMES:
        raise MixshowError(f"algorithm '{name}': unknown{did_you_mean(spelled, NAMES)}")
    return NAMES[spelled]


def algorithm_of(tensor_names: Collection[str]) -> type[Algorithm] | None:
    """The algorithm that wrote these tensors of one module; None: no known one.

    Raises:
        MixshowError: they are of several.
    """
    claiming = [kind for kind in ALGORITHMS.values() if kind.claims(tensor_names)]
    if len(claiming) > 1:
        kinds = " and ".join(kind.name for kind in claiming)
        raise MixshowError(f"tensors of {kinds} mixed on one module: {', '.join(sorted(tensor_names))}")
    return claiming[0] if claiming else None


def checked_options(kind: type[Algorithm], options: Mapping[str, Any]) -> dict[str, Any]:
    """An algorithm's own options, under its names, quoted numbers and truth values taken as such.

    Raises:
        MixshowError: an option that it does not have, or a value of another type.
    """
    found: dict[str, Any] = {}
    signature = inspect.signature(kind.create).parameters
    known = {**kind.options, **DROPOUT_OPTIONS}
    for given, value in options.items():
        option = OPTION_ALIASES.get(given, given)
        if option not in known:
            raise MixshowError(f"algorithm '{kind.name}': no option '{given}'{_whose(option, known)}")
        default = signature[option].default if option in signature else getattr(Dropouts, option)
        found[option] = _typed(kind, option, value, default)
    return found


def _whose(option: str, known: Mapping[str, str]) -> str:
    owners = [kind.name for kind in ALGORITHMS.values() if option in kind.options]
    if owners:
        return f"; that is one of {', '.join(owners)}"
    return did_you_mean(option, known)


def _typed(kind: type[Algorithm], option: str, value: Any, default: Any) -> Any:
    def wrong(expected: str) -> MixshowError:
        return MixshowError(f"algorithm '{kind.name}': option '{option}': expected {expected}, found {value!r}")

    if isinstance(default, bool):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, bool):
            return value
        if str(value).lower() not in words:
            raise wrong("true or false")
        return words[str(value).lower()]
    if isinstance(default, int | float):
        expected = "a whole number" if isinstance(default, int) else "a number"
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise wrong(expected) from None
        if isinstance(value, bool) or (isinstance(default, int) and not number.is_integer()):
            raise wrong(expected)
        return int(number) if isinstance(default, int) else number
    return value
