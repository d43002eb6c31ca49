"""The concept-token guard: a region's concept tokens are attended to from that region only.

Regional attention already gives a region's own prompt to its own positions. A scene's prompt, or another region's, may
name the same concept: there, at a position of which the concept's regions have a share g, the token's probability
counts by g and the rest is normalised again. With g = 0 no position attends to it. Tokens that stand behind a concept's
in a prompt have read it in the text encoder; they are not guarded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from mixshow.models import ConceptVocabulary
from mixshow.models.vocabulary import concept_words
from mixshow.sampling.regions import Region


@dataclasses.dataclass(frozen=True, eq=False)
class TokenGuard:
    """Whose tokens stand where in the texts of a scene.

    Attributes:
        owners: `[texts, tokens, regions]`, true for every region that has the token there to itself; none: the token is
            everybody's.
    """

    owners: Tensor

    @classmethod
    def of(
        cls, vocabulary: ConceptVocabulary, ids: Tensor, regions: Sequence[Region], own_text: Sequence[int | None]
    ) -> TokenGuard:
        """The guard of a scene.

        Args:
            ids: of the tokens of the texts that are attended to, as the first layer reads them, `[texts, tokens]`.
            own_text: for each region the text that only its own positions attend to, None: there is no such text.
        """
        owners = torch.zeros(*ids.shape, len(regions), dtype=torch.bool)
        free = torch.zeros(owners.shape[:2], dtype=torch.bool)
        for number, (region, own) in enumerate(zip(regions, own_text)):
            for token in region_tokens(region, vocabulary):
                columns = token_columns(vocabulary, ids, token)
                owners[:, :, number] |= columns
                if own is not None:
                    free[own] |= columns[own]
        return cls(owners & ~free[:, :, None])

    def without(self, regions: Sequence[int]) -> TokenGuard:
        """The guard that leaves some regions' tokens to everybody: those of regions that have no place yet."""
        owners = self.owners.clone()
        owners[:, :, list(regions)] = False
        return TokenGuard(owners)

    def weights(self, shares: Tensor) -> Tensor:
        """By how much the positions may attend to each token, `[texts, positions, tokens]`, float32, 0 to 1.

        Args:
            shares: of the regions, `[regions, positions]`.
        """
        owned = torch.einsum("tkr,rp->tpk", self.owners.to(shares), shares)
        return torch.where(self.owners.any(-1)[:, None], owned, 1).clamp(max=1).float()

    def bias(self, shares: Tensor, texts: Tensor, take: Tensor) -> Tensor | None:
        """What is added to the logits of an attention to some of the texts, `[used, longest, tokens]`; None: nothing.

        Args:
            shares: as for `weights`.
            texts: `[used]`, the texts that are attended to.
            take: `[used * longest]`, the positions that attend to each of them.
        """
        weights = self.weights(shares)[texts]
        places = take.view(len(texts), -1, 1).expand(-1, -1, weights.shape[2])
        weights = weights.gather(1, places)
        return None if (weights == 1).all() else weights.log()


def region_tokens(region: Region, vocabulary: ConceptVocabulary) -> tuple[str, ...]:
    """The concept tokens a region is about: its own, or those that its prompt names."""
    named = region.tokens or concept_words(region.prompt)
    return tuple(dict.fromkeys(token for token in named if token in vocabulary.entries))


def token_columns(vocabulary: ConceptVocabulary, ids: Tensor, token: str) -> Tensor:
    """Where a concept token stands, for every layer alike: true or false for every id, on the CPU."""
    return (ids == vocabulary.ids[token][0]).cpu()
