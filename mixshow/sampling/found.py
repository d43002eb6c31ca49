"""Regions found from attention: where a picture attends to their concepts' tokens while its first steps run.

Until then the picture follows the scene's own prompt, which must name the concepts. The probabilities with which
positions attend to a region's tokens, averaged over steps, heads and layers of several resolutions (as in DAAM, arXiv
2210.04885), are its map. From the maps come the areas for the remaining steps, see `areas_of_maps`.
"""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional

from mixshow.core.errors import MixshowError
from mixshow.core.progress import log
from mixshow.models import Base
from mixshow.sampling.areas import Feathered, Mask
from mixshow.sampling.attention_areas import areas_of_maps
from mixshow.sampling.guard import region_tokens, token_columns
from mixshow.sampling.regional_attention import RegionPlan
from mixshow.sampling.regions import Area
from mixshow.sampling.sought import Sought

_COARSEST = 16  # layers of fewer positions than one of so many of the finest say little about places
_NOTHING = 1e-12


class AttentionSearch:
    """Finds the sought areas of a plan's regions, for one picture after another; each begins with step 0.

    Attributes:
        sums: of the maps over steps and layers, for each number of positions `[sought regions, positions]`.
    """

    def __init__(self, base: Base, plan: RegionPlan, ids: Tensor | None = None) -> None:
        """
        Args:
            plan: its background's prompt names the tokens of the regions that are sought.
            ids: see `RegionPlan.ids`; None: of prompts as they are written.

        Raises:
            MixshowError: they stand behind what the model reads of the prompt.
        """
        self.plan = plan
        self.sought: dict[int, Sought] = {
            number: region.area for number, region in enumerate(plan.regions) if isinstance(region.area, Sought)
        }
        read = (plan.ids(base) if ids is None else ids)[0]
        self.tokens = {number: region_tokens(plan.regions[number], base.vocabulary) for number in self.sought}
        columns = [
            torch.stack([token_columns(base.vocabulary, read, token) for token in self.tokens[number]]).any(0).float()
            for number in self.sought
        ]
        for number, column in zip(self.sought, columns):
            if not column.any():
                raise MixshowError(
                    f"regions[{number}].from: expected {' '.join(self.tokens[number])} within the {len(read)} tokens "
                    "that the model reads of the scene's prompt; put them nearer to the front"
                )
        self._mean = torch.stack([column / column.sum() for column in columns]).to(base.device)  # [sought, tokens]
        self.sums: dict[int, Tensor] = {}

    @property
    def watching(self) -> bool:
        """Whether attention is looked at in this step."""
        return self._step < self.after

    @property
    def after(self) -> int:
        """Steps after which the areas are fixed."""
        return max(area.after for area in self.sought.values())

    _step = 0

    def begin_step(self, step: int, steps: int) -> None:
        """Begin to look at step 0, fix the areas when enough steps are done."""
        self._step = step
        if step == 0:
            self.sums.clear()
            self.plan.place(self.sought)
        elif step == self.after:
            self._fix()

    def watch(self, attn: Attention, query: Tensor, key: Tensor) -> None:
        """Look at one layer.

        Args:
            query: of one picture, `[halves, positions, width]`.
            key: `[halves, texts, heads, tokens, head width]`.
        """
        queries = query[-1].unflatten(-1, (attn.heads, -1)).transpose(0, 1)
        queries = queries if attn.norm_q is None else attn.norm_q(queries)
        with torch.autocast(query.device.type, enabled=False):
            logits = queries.float() @ key[-1, 0].float().mT / queries.shape[-1] ** 0.5
            found = self._mean @ logits.softmax(-1).mean(0).mT
        positions = query.shape[1]
        self.sums[positions] = self.sums[positions] + found if positions in self.sums else found

    def _fix(self) -> None:
        finest = max(self.sums)
        rows, columns = self.plan.grid(finest)
        maps = torch.zeros(len(self.sought), rows, columns)
        for positions, found in self.sums.items():
            if positions * _COARSEST >= finest:
                coarse = (
                    (found / found.sum(1, keepdim=True).clamp(min=_NOTHING))
                    .cpu()
                    .unflatten(1, self.plan.grid(positions))[None]
                )
                finer = functional.interpolate(coarse, (rows, columns), mode="bilinear", align_corners=False)[0]
                maps += finer * positions / finest
        inside = areas_of_maps(maps, [area.threshold for area in self.sought.values()])
        placed: dict[int, Area] = {}
        for (number, sought), area in zip(self.sought.items(), inside):
            if area.any():
                mask = Mask(area.double())
                placed[number] = Feathered(mask, sought.feather) if sought.feather else mask
            self._report(number, area)
        self.plan.place(placed)

    def _report(self, number: int, area: Tensor) -> None:
        tokens = " ".join(self.tokens[number])
        if not area.any():
            log.warning(
                "regions[%d]: the picture has no place where it attends most to %s, so its prompt acts nowhere; "
                "another seed, a lower threshold or a larger 'after' may give one",
                number,
                tokens,
            )
            return
        (top, left), (bottom, right) = area.nonzero().amin(0).tolist(), (area.nonzero().amax(0) + 1).tolist()
        factors = [side / cells for side, cells in zip(self.plan.size, reversed(area.shape))]
        box = [round(edge * factors[axis % 2]) for axis, edge in enumerate((left, top, right, bottom))]
        log.info("regions[%d]: %s has %.0f %% of the picture, in %s", number, tokens, 100 * area.double().mean(), box)
