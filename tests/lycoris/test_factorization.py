"""The rule of factor sizes, against the published numbers."""

from __future__ import annotations

import pytest

from mixshow.lycoris.factorization import factorization

PUBLISHED = {
    320: {-1: (16, 20), 2: (2, 160), 4: (4, 80), 8: (8, 40), 12: (10, 32), 16: (16, 20), 32: (10, 32), 64: (5, 64)},
    640: {-1: (20, 32), 4: (4, 160), 8: (8, 80), 16: (16, 40), 64: (10, 64)},
    768: {-1: (24, 32), 8: (8, 96)},
    1280: {-1: (32, 40), 8: (8, 160), 64: (20, 64)},
    2560: {-1: (40, 64)},
    3072: {-1: (48, 64)},
    10240: {-1: (80, 128)},
    4: {-1: (2, 2), 4: (1, 4)},
}


@pytest.mark.parametrize("width", PUBLISHED)
def test_published_sizes(width: int) -> None:
    assert {factor: factorization(width, factor) for factor in PUBLISHED[width]} == PUBLISHED[width]


def test_it_is_the_walk_over_the_divisors() -> None:
    """From (1, width) the smaller number steps to the next divisor, up to the factor, until the two have met."""
    for width in range(1, 60):
        divisors = [d for d in range(1, width + 1) if width % d == 0]
        for factor in range(-1, width + 5):
            smaller = 1
            while smaller < width // smaller:
                following = divisors[divisors.index(smaller) + 1]
                if 0 <= factor < following:
                    break
                smaller = following
            if factor > 0 and width % factor == 0:
                smaller = factor
            assert factorization(width, factor) == tuple(sorted((smaller, width // smaller)))
