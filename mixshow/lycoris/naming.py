"""Module names in network files: `lora_unet_<path with _>` and `lora_te_text_model_...` (kohya, LyCORIS).

Underscores cannot be turned back into dots, so names are always looked up among a model's own modules.
transformers 5 dropped `text_model.` from CLIP's module paths; files and published formats keep it. Programs write the
UNet's modules under diffusers' or under SGM's names (`lora_unet_input_blocks_1_1_...`) and under several prefixes:
`NameIndex` knows all of them and answers with the one spelling used here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.core.sgm import sgm_names

# Model -> prefix that is written. `model` is any one module, under the name LyCORIS gives it; models of other names
# get `lora_<name>`. A text encoder that has a second one beside it is `lora_te1`.
PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2", "model": "lycoris"}
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
OFT_PREFIX = "oft_unet"  # sd-scripts' OFT files, UNet only
_STANDALONE = "lycoris"  # LyCORIS on a single model, whichever it is
_TEXT_ROOT = "text_model"
_TEXT_CHILDREN = ("embeddings", "encoder", "final_layer_norm")


def canonical_path(model: str, path: str) -> str:
    """A module's path as files spell it: CLIP's paths start with `text_model.` whatever the library does."""
    if model in TEXT_ENCODERS and path.partition(".")[0] in _TEXT_CHILDREN:
        return f"{_TEXT_ROOT}.{path}"
    return path


def prefix_of(model: str, models: Collection[str] = ()) -> str:
    """The prefix of a model's modules in network files.

    Args:
        models: names of all models of the base; with two text encoders the first is `lora_te1`.
    """
    if model == "text_encoder" and "text_encoder_2" in models:
        return "lora_te1"
    return PREFIXES.get(model, f"lora_{model}")


def file_name(model: str, path: str, models: Collection[str] = ()) -> str:
    """The name of a module in network files; `models` as in `prefix_of`."""
    return f"{prefix_of(model, models)}_{canonical_path(model, path).replace('.', '_')}"


def weighted_modules(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`(path, module)` of every module below `root` that has a weight, in the model's order."""
    for path, module in root.named_modules():
        if path and isinstance(getattr(module, "weight", None), nn.Parameter):
            yield path, module


def modules_by_file_name(models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Every module with a weight, by its name in network files.

    Raises:
        MixshowError: two modules get one name (`a.b_c` and `a_b.c`), so that a file could not tell them apart.
    """
    found: dict[str, nn.Module] = {}
    for model, root in models.items():
        for path, module in weighted_modules(root):
            name = file_name(model, path, models)
            if name in found:
                raise MixshowError(
                    f"{model}: the modules whose paths read '{name}' with _ for . cannot be told apart in a network "
                    "file; rename one of them"
                )
            found[name] = module
    return found


def modules_by_canonical_path(model: str, root: nn.Module) -> dict[str, nn.Module]:
    """Every module with a weight, by its canonical path."""
    return {canonical_path(model, path): module for path, module in weighted_modules(root)}


class NameIndex:
    """The modules of some models under every name that network files give them.

    Attributes:
        modules: by the file name used here.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self.modules = modules_by_file_name(models)
        self._names: dict[str, str] = {name: name for name in self.modules}
        self._sgm: dict[str, str] = {}
        standalone: dict[str, set[str]] = {}
        for model, root in models.items():
            sgm = sgm_names(root) if model == "unet" else {}
            for path, _ in weighted_modules(root):
                name = file_name(model, path, models)
                bodies = _bodies(model, path, sgm)
                if path in sgm:
                    self._sgm[name] = f"{prefix_of(model, models)}_{sgm[path][0].replace('.', '_')}"
                for body in bodies:
                    for prefix in _accepted_prefixes(model, models):
                        self._names.setdefault(f"{prefix}_{body}", name)
                    standalone.setdefault(f"{_STANDALONE}_{body}", set()).add(name)
        for spelled, names in standalone.items():
            if len(names) == 1:  # two text encoders share paths: such a name tells nothing
                self._names.setdefault(spelled, next(iter(names)))

    def find(self, name: str) -> str | None:
        """The file name, as it is spelled here, of the module that a name in a file means; None: no such module."""
        return self._names.get(name)

    def sgm(self, name: str) -> str:
        """The name under which programs that keep SGM's modules (most, for XL) know a module; else its own."""
        return self._sgm.get(name, name)


def _bodies(model: str, path: str, sgm: Mapping[str, tuple[str, ...]]) -> list[str]:
    """A module's names without prefix."""
    bodies = [canonical_path(model, path), *sgm.get(path, ())]
    if model in TEXT_ENCODERS:
        bodies.append(bodies[0].removeprefix(f"{_TEXT_ROOT}."))
    return [body.replace(".", "_") for body in bodies]


def _accepted_prefixes(model: str, models: Collection[str]) -> tuple[str, ...]:
    """The prefixes under which files may have a model, the written one first."""
    written = prefix_of(model, models)
    if model == "unet":
        return written, OFT_PREFIX
    if model == "text_encoder" and "text_encoder_2" not in models:
        return written, "lora_te1"  # LyCORIS counts as soon as it is given a list
    return (written,)
