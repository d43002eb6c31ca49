"""Networks: weight changes of a model that can be attached, trained, merged and taken off again."""

from mixshow.lycoris.network import Network, create_network, load_network

__all__ = ["Network", "create_network", "load_network"]
