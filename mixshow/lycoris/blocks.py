"""Rank, alpha and learning rate per block of the UNet: 25 values for SD 1.x and 2.x, 23 for XL.

The blocks are SGM's flat list, as sd-scripts counts them: input blocks, middle, output blocks; XL counts the three
middle blocks one by one and has the time embedding in front and the last layers at the end.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from mixshow.core.errors import MixshowError, did_you_mean
from mixshow.lycoris.matching import wide_kernel
from mixshow.lycoris.naming import NameIndex
from mixshow.lycoris.targets import Target

_POSITION = re.compile(r"lora_unet_(?:(input|middle|output)_blocks?_(\d+)_|(time_embed|label_emb|out)_)")

# Curves over the blocks of one side, from its first (0) to its last (1).
CURVES: Mapping[str, Callable[[float], float]] = {
    "sine": lambda x: math.sin(math.pi / 2 * x),
    "cosine": lambda x: math.sin(math.pi / 2 * (1 - x)),
    "linear": lambda x: x,
    "reverse_linear": lambda x: 1 - x,
    "zeros": lambda x: 0.0,
}


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """How the blocks of a UNet are counted.

    Attributes:
        inputs: number of input blocks that have an index; as many output blocks.
        middle: number of middle blocks that have an index of their own.
        ends: whether the time embedding (first) and the last layers (last) have one too.
    """

    index: NameIndex
    inputs: int
    middle: int
    ends: bool

    @classmethod
    def of(cls, models: Mapping[str, nn.Module]) -> BlockLayout:
        """The layout of a base.

        Raises:
            MixshowError: the models have no UNet of diffusers' build.
        """
        index = NameIndex(models)
        found = [match for name in index.modules if (match := _POSITION.match(index.sgm(name)))]
        inputs = max((int(match[2]) + 1 for match in found if match[1] == "input"), default=0)
        if not inputs:
            raise MixshowError("blocks: expected a base with a UNet of Stable Diffusion, found none")
        ends = any(match[3] == "label_emb" for match in found)  # XL
        outputs = max(int(match[2]) + 1 for match in found if match[1] == "output")
        return cls(index, max(inputs, outputs), 3 if ends else 1, ends)

    @property
    def count(self) -> int:
        """Number of blocks."""
        return 2 * self.inputs + self.middle + 2 * self.ends

    def block_of(self, name: str) -> int | None:
        """The block of a module, by its name in network files (diffusers' or SGM's); None: it lies in none.

        The time embedding and the last layers lie in none where they have no index.
        """
        name = self.index.find(name) or name
        match = _POSITION.match(self.index.sgm(name))
        if match is None:
            return None
        side, number, end = match.groups()
        if end:
            return (self.count - 1 if end == "out" else 0) if self.ends else None
        if side == "input":
            return self.ends + int(number)
        if side == "middle":
            return self.ends + self.inputs + min(int(number), self.middle - 1)
        return self.ends + self.inputs + self.middle + int(number)

    def name_of(self, block: int) -> str:
        """What SGM calls a block, `input_blocks.4`; the ends of XL are `time_embed` and `out`."""
        if self.ends and block in (0, self.count - 1):
            return "out" if block else "time_embed"
        number = block - self.ends
        if number < self.inputs:
            return f"input_blocks.{number}"
        number -= self.inputs
        if number < self.middle:
            return "middle_block" if self.middle == 1 else f"middle_block.{number}"
        return f"output_blocks.{number - self.middle}"

    def weights(
        self,
        *,
        down: str | float | Sequence[float] | None = None,
        mid: str | float | Sequence[float] | None = None,
        up: str | float | Sequence[float] | None = None,
        threshold: float = 0.0,
    ) -> tuple[float, ...]:
        """One weight per block from weights of the three parts.

        Args:
            down: a number for all blocks; one per block, also as text with commas; or the name of a curve (`sine`,
                `cosine`, `linear`, `reverse_linear`, `zeros`), with `+0.25` behind it to lift it. None: 1.
            threshold: a weight up to here counts as 0, which leaves the block's modules out.

        Raises:
            MixshowError: another number of values, or no curve of that name.
        """
        parts = (("down", down, self.inputs), ("mid", mid, self.middle), ("up", up, self.inputs))
        found = [1.0] * self.ends
        for part, given, count in parts:
            values = (1.0,) * count if given is None else block_values(given, count, f"{part}_lr_weight")
            found += [value if given is None or value > threshold else 0.0 for value in values]
        return (*found, *[1.0] * self.ends)


def block_values(given: str | float | Sequence[float], count: int, what: str = "block values") -> tuple[float, ...]:
    """One value per block: from one for all, a list, the same as text (nothing between commas is 0), or a curve.

    Raises:
        MixshowError: another number of values, or what is no number and no curve.
    """
    if isinstance(given, str):
        curve, _, lift = given.partition("+")
        if curve.strip() in CURVES:
            shape, last = CURVES[curve.strip()], max(count - 1, 1)
            return tuple(shape(block / last) + (_number(lift, what) if lift else 0.0) for block in range(count))
        numbers = [_number(item, what) if item.strip() else 0.0 for item in given.split(",")]
        given = numbers[0] if len(numbers) == 1 else numbers
    if isinstance(given, int | float):
        return (float(given),) * count
    if len(given) != count:
        raise MixshowError(f"{what}: expected {count} values, one per block, found {len(given)}")
    return tuple(float(value) for value in given)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        name = text.strip()
        raise MixshowError(f"{what}: expected numbers or a curve, found '{name}'{did_you_mean(name, CURVES)}") from None


def with_block_ranks(
    targets: Iterable[Target],
    layout: BlockLayout,
    *,
    dims: str | Sequence[float] | None = None,
    alphas: str | Sequence[float] | None = None,
    conv_dims: str | Sequence[float] | None = None,
    conv_alphas: str | Sequence[float] | None = None,
    rates: Sequence[float] | None = None,
) -> list[Target]:
    """Targets with the rank and alpha of their block; modules outside all blocks keep the network's.

    Args:
        dims: rank per block, 0 leaving its modules out; `conv_dims` for kernels larger than 1, which keep the network's
            where it is None. `alphas` and `conv_alphas` likewise.
        rates: weight of the learning rate per block; modules of blocks with 0 are left out.

    Raises:
        MixshowError: another number of values than blocks; ranks that are no whole numbers; nothing is left.
    """
    values: dict[tuple[str, bool], tuple[float, ...]] = {}
    for option, wide, what, given in (
        ("dim", False, "block_dims", dims),
        ("alpha", False, "block_alphas", alphas),
        ("dim", True, "conv_block_dims", conv_dims),
        ("alpha", True, "conv_block_alphas", conv_alphas),
    ):
        if given is not None:
            values[option, wide] = block_values(given, layout.count, what)
            if option == "dim" and any(value < 0 or value % 1 for value in values[option, wide]):
                raise MixshowError(f"{what}: expected whole numbers from 0 up, found {given}")
    weights = None if rates is None else block_values(rates, layout.count, "block rates")
    found = []
    for target in targets:
        block = layout.block_of(target.file_name)
        own: dict[str, Any] = {}
        if block is not None:
            for option in ("dim", "alpha"):
                if (option, wide_kernel(target.module)) in values:
                    value = values[option, wide_kernel(target.module)][block]
                    own[option] = int(value) if option == "dim" else value
            if own.get("dim") == 0 or (weights is not None and weights[block] == 0):
                continue
        found.append(dataclasses.replace(target, options={**target.options, **own}))
    if not found:
        raise MixshowError("blocks: nothing is left to change; every block's rank or rate is 0")
    return found


def rate_groups(
    adapters: Mapping[str, nn.Module], layout: BlockLayout, weights: Sequence[float], rate: float
) -> list[dict[str, Any]]:
    """Optimizer groups, one per block, in the blocks' order; modules outside all blocks train at the plain rate.

    Args:
        adapters: a network's, by file name.
        weights: of the learning rate, one per block.
        rate: that is multiplied by them.
    """
    weights = block_values(weights, layout.count, "block rates")
    groups: dict[int, list[nn.Parameter]] = {}
    for name, adapter in adapters.items():
        block = layout.block_of(name)
        groups.setdefault(-1 if block is None else block, []).extend(adapter.parameters())
    return [
        {"params": groups[block], "lr": rate * (1.0 if block < 0 else weights[block]), "block": block}
        for block in sorted(groups)
    ]
