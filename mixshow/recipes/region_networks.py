"""The networks of a scene that act in some of its regions only."""

from __future__ import annotations

from collections.abc import Sequence

from mixshow.config.scene import SceneOptions
from mixshow.core.errors import MixshowError, OptionsError
from mixshow.core.progress import log
from mixshow.edlora.concept import Concept, concept_network
from mixshow.models import Base
from mixshow.recipes.networks import read_network
from mixshow.sampling.directed import DirectedNetwork
from mixshow.sampling.guard import region_tokens
from mixshow.sampling.scene import Scene


def region_networks(
    base: Base, scene: Scene, options: SceneOptions, concepts: Sequence[Concept], source: str
) -> list[DirectedNetwork]:
    """Networks of regions, and of concepts where these are directed to the regions that name them; not attached.

    Args:
        base: knows the concepts' tokens.
        options: with the scene's regions in them.
        source: where the options came from, for messages.

    Raises:
        OptionsError: files that are no networks for this base, all of them.
    """
    found: list[DirectedNetwork] = []
    problems: list[str] = []
    for number, region in enumerate(options.regions):
        if region.network is not None:
            try:
                found.append(DirectedNetwork(read_network(base, region.network), frozenset({number})))
            except MixshowError as error:
                problems += [f"regions[{number}].network: {line}" for line in str(error).splitlines()]
    directed = concepts if options.concept_networks == "regions" else []
    strengths = options.strengths or [1.0] * len(directed)
    for i, (concept, strength) in enumerate(zip(directed, strengths, strict=False)):
        regions = _naming(concept, scene, base)
        if not regions:
            log.info("concepts[%d]: no region names %s; its network acts nowhere", i, concept.text)
        try:
            found.append(DirectedNetwork(concept_network(base, concept, strength), regions))
        except MixshowError as error:
            problems.append(f"concepts[{i}]: {error}")
    if problems:
        raise OptionsError(source, problems)
    return found


def _naming(concept: Concept, scene: Scene, base: Base) -> frozenset[int]:
    """The numbers of the regions that are about a concept."""
    return frozenset(
        number
        for number, region in enumerate(scene.regions)
        if set(concept.embeddings) & set(region_tokens(region, base.vocabulary))
    )
