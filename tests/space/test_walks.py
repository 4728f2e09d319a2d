"""The length of a walk has a bound; what walks count is tested with the budgets."""

import random

import pytest

from training.space.walks import TooManySumsError, Walk, median_sum


RNG = random.Random(0)
# Sums of twelve layers are nearly all distinct.
LAYERS = [[(RNG.randrange(10**9),) for _ in range(4)] for _ in range(12)]


@pytest.mark.parametrize("ask", [Walk.arrows, Walk.is_feasible, lambda walk: walk.best_sum(0, 1)])
def test_a_walk_ends_at_its_bound(ask):
    middle = sum(sorted(option[0] for option in layer)[1] for layer in LAYERS)
    with pytest.raises(TooManySumsError):
        ask(Walk(LAYERS, [(middle + 0.4, middle + 0.6)], max_transitions=500))


def test_a_median_of_too_many_sums_is_refused():
    with pytest.raises(TooManySumsError):
        median_sum([[option[0] for option in layer] for layer in LAYERS] * 2)
