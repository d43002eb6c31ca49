"""What fusion is compared with: adding up or averaging the concepts' changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mixshow.fusion.build import widened
from mixshow.fusion.fuse import Fusion, all_embeddings
from mixshow.fusion.members import Member
from mixshow.models import Base


def weighted_sum(base: Base, members: Sequence[Member]) -> Fusion:
    """`D = sum_i w_i D_i`, every concept at its weight."""
    total: dict[str, Tensor] = {}
    for member in members:
        for path, change in member.changes(base).items():
            before = total.get(path, change.new_zeros(change.flatten(1).shape))
            width = max(before.shape[1], change.flatten(1).shape[1])  # biases are one more column
            total[path] = widened(before, width) + member.weight * widened(change, width).double()
    return Fusion(total, all_embeddings(members))


def weight_average(base: Base, members: Sequence[Member]) -> Fusion:
    """`D = sum_i w_i D_i / sum_i w_i`, what merging tools do by default."""
    summed = weighted_sum(base, members)
    share = 1 / sum(member.weight for member in members)
    return Fusion({path: share * change for path, change in summed.changes.items()}, summed.embeddings)
