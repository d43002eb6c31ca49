"""Networks: weight changes of a model that can be attached, trained, merged and taken off again."""

from mixshow.lycoris.create import create_network
from mixshow.lycoris.load import load_network
from mixshow.lycoris.network import Network

__all__ = ["Network", "create_network", "load_network"]
