"""Draws by rejection: what they keep, and how many children they say there are."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy.stats import chisquare

from training.space.tilting import TiltedDraws


# Three layers, the second with one option less; two costs.
LAYERS = [[(1, 9), (4, 2), (8, 1)], [(2, 2), (5, 1)], [(0, 7), (3, 3), (9, 0)]]
INF = float("inf")


def sums_of(options) -> tuple[int, int]:
    chosen = [layer[option] for layer, option in zip(LAYERS, options, strict=True)]
    return sum(first for first, _ in chosen), sum(second for _, second in chosen)


def inside(windows) -> list[tuple[int, ...]]:
    return [
        options
        for options in product(*(range(len(layer)) for layer in LAYERS))
        if all(low <= total <= high for total, (low, high) in zip(sums_of(options), windows, strict=True))
    ]


@pytest.mark.parametrize(
    "windows", [[(-INF, 12), (-INF, INF)], [(10, INF), (-INF, 9)], [(6, 14), (6, 12)]], ids=["one", "apart", "windows"]
)
def test_each_choice_inside_is_drawn_equally_often(windows):
    draws, rng = TiltedDraws(LAYERS, windows), np.random.default_rng(1)
    expected = inside(windows)
    estimate = draws.estimate(rng)
    drawn = Counter(tuple(draws.draw(rng)) for _ in range(1_000))
    assert set(drawn) == set(expected)
    assert chisquare(list(drawn.values())).pvalue > 0.001
    assert estimate.error < 0.02
    assert abs(estimate.size - len(expected)) <= 0.5 + 5 * estimate.error * len(expected)


def test_windows_that_nothing_meets_are_told_apart_from_those_that_no_draw_meets():
    assert TiltedDraws(LAYERS, [(-INF, 2), (-INF, INF)]).is_surely_empty
    # Each can be met, together they cannot.
    assert TiltedDraws(LAYERS, [(-INF, 4), (-INF, 8)]).is_surely_empty
    between = TiltedDraws([[(0,), (4,)]] * 3, [(5, 7)])
    assert not between.is_surely_empty
    assert between.draw(np.random.default_rng(0), 1_000) is None
    assert between.estimate(np.random.default_rng(0)) is None


def test_counts_that_no_float_holds():
    estimate = TiltedDraws([[(0,), (1,)]] * 1_100, [(-INF, 1_100)]).estimate(np.random.default_rng(0))
    assert estimate.error == 0
    assert estimate.size / 2**1_100 == pytest.approx(1, rel=1e-9)
