"""Loading the small measuring networks that ship with the built-in base."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import nn

from mixshow.core.errors import MixshowError
from mixshow.core.files import read_safetensors

WEIGHTS = Path(__file__).parent / "weights"
Net = TypeVar("Net", bound=nn.Module)


def load_weights(network: Net, name: str, path: Path | str | None = None) -> Net:
    """Fill a network with the weights that ship under a name, or with those of another file, in float32.

    Raises:
        MixshowError: the file is missing, or holds another network's weights.
    """
    path = Path(path) if path is not None else WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        raise MixshowError(f"{path}: the weights are missing; make them with scripts/train_puppets.py")
    tensors, _ = read_safetensors(path)
    try:
        network.load_state_dict({key: value.float() for key, value in tensors.items()})
    except RuntimeError as error:
        raise MixshowError(f"{path}: expected the weights of a {type(network).__name__}, found others") from error
    return network
