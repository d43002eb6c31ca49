"""Splitting a layer's width into two factors, the rule LoKr, GLoKr, OFT and BOFT files rely on.

LyCORIS (Yeh et al. 2023, arXiv 2309.14859); the published files hold factors of exactly these sizes.
"""

from __future__ import annotations

import math


def factorization(width: int, factor: int = -1) -> tuple[int, int]:
    """`(smaller, larger)` with `smaller * larger == width`.

    A factor that divides the width is taken as it is. Otherwise the smaller number is the largest divisor that is
    neither above the factor nor above the square root of the width; a negative factor sets no limit.

    Args:
        width: what to split, at least 1.
        factor: the wished factor; negative: as near to the square root as possible.

    Example:
        >>> factorization(320), factorization(320, 8), factorization(320, 12), factorization(320, 64)
        ((16, 20), (8, 40), (10, 32), (5, 64))
    """
    if factor > 0 and width % factor == 0:
        return min(factor, width // factor), max(factor, width // factor)
    limit = math.isqrt(width) if factor < 0 else min(factor, math.isqrt(width))
    smaller = next((divisor for divisor in range(limit, 1, -1) if width % divisor == 0), 1)
    return smaller, width // smaller
