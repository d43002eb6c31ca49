"""The network files of a scene, on its base: attached, or merged into the weights."""

from __future__ import annotations

from collections.abc import Sequence

from mixshow.config.network import NetworkOptions
from mixshow.config.scene import SceneOptions
from mixshow.core.attachment import Attachment
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.lycoris import Network, load_network
from mixshow.models import Base


def missing_networks(options: SceneOptions) -> list[str]:
    """Files that are not there, one sentence each."""
    named = {f"networks[{i}]": entry for i, entry in enumerate(options.networks)}
    named |= {f"regions[{i}].network": region.network for i, region in enumerate(options.regions) if region.network}
    return [
        f"{name}.file: no such network file: {entry.file}" for name, entry in named.items() if not entry.file.exists()
    ]


def read_network(base: Base, entry: NetworkOptions) -> Network:
    """A network file for a base, frozen and not attached.

    Raises:
        MixshowError: it is no network for this base.
    """
    network = load_network(base.models, entry.file, multiplier=entry.strength, missing_alpha=entry.missing_alpha)
    network.num_train_timesteps = base.num_train_timesteps
    return network.requires_grad_(False)


def put_networks_on(base: Base, entries: Sequence[NetworkOptions], source: str, *, merge: bool) -> Attachment:
    """Let networks change a base, each at its strength, until the handle is detached.

    Args:
        source: where the options came from, for messages.
        merge: change the weights instead of attaching the networks; in 16 bits that rounds the sums.

    Raises:
        OptionsError: files that are no networks for this base, all of them; the base is left as it was.
    """
    networks: list[Network] = []
    problems: list[str] = []
    for i, entry in enumerate(entries):
        try:
            networks.append(read_network(base, entry))
        except MixshowError as error:
            problems += [f"networks[{i}]: {line}" for line in str(error).splitlines()]
    if problems:
        raise OptionsError(source, problems)
    attachment = Attachment()
    try:
        for network in networks:
            attachment.add(network.unmerge if merge else network.detach)
            if merge:
                network.merge()
            else:
                network.attach()
    except BaseException:
        attachment.detach()
        raise
    return attachment
