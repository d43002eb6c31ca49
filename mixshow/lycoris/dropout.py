"""The three dropouts of a weight change. They act in training only, whichever way the change is computed.

Drawn from torch's own generator of the device, so that gradient checkpointing draws the same again.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from mixshow.core.errors import MixshowError

DROPOUT_OPTIONS = {
    "dropout": "probability that an element of the change of the module's output is dropped (the rest is scaled up)",
    "rank_dropout": "probability that a rank of the change is dropped; output channels where there are no ranks",
    "module_dropout": "probability that a module is left unchanged for one call",
    "rank_dropout_scale": "scale what rank_dropout leaves up, by the share it left",
}


@dataclasses.dataclass(frozen=True)
class Dropouts:
    """
    Attributes:
        dropout: of the elements of the output's change; the rest is divided by 1 - p.
        rank_dropout: of the ranks, one draw per call for the whole batch.
        module_dropout: of the module's whole change, one draw per call, not rescaled.
        rank_dropout_scale: divide by the share of ranks that was kept.
    """

    dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    rank_dropout_scale: bool = False

    def __post_init__(self) -> None:
        for name in ("dropout", "rank_dropout", "module_dropout"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise MixshowError(f"{name}: expected a probability of at least 0 and below 1, found {value}")

    @property
    def act(self) -> bool:
        """Whether any of them does anything in training."""
        return bool(self.dropout or self.rank_dropout or self.module_dropout)

    def rank_mask(self, ranks: int, like: Tensor) -> Tensor | None:
        """What the ranks are multiplied by, `[ranks]` in the type of `like`; None: nothing is dropped."""
        if not self.rank_dropout:
            return None
        mask = (torch.rand(ranks, device=like.device) >= self.rank_dropout).to(like.dtype)
        if self.rank_dropout_scale:
            mask = mask / mask.mean().clamp_min(1 / ranks)
        return mask

    def on_output(self, change: Tensor) -> Tensor:
        """A change of the module's output with dropout and module dropout."""
        if self.dropout:
            change = F.dropout(change, self.dropout)
        if self.module_dropout:
            change = change * (torch.rand((), device=change.device) >= self.module_dropout).to(change.dtype)
        return change
