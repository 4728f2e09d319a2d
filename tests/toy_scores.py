"""Made-up scores of children whose quality as a ranking is known."""

import math
from itertools import product

import numpy as np

from training.space.search_space import Architecture


OPERATORS = ("MHA4", "FFN", "CONV3", "CONV5")
CHILDREN = sorted(product(OPERATORS, repeat=4))


def scores_of(values) -> dict[Architecture, float]:
    """The first children with these scores."""
    return {child: float(value) for child, value in zip(CHILDREN, values, strict=False)}


def normal(rng: np.random.Generator, number: int, correlation: float) -> tuple[np.ndarray, np.ndarray]:
    """Two lists of normal numbers of this correlation."""
    first, noise = rng.standard_normal((2, number))
    return first, correlation * first + math.sqrt(1 - correlation**2) * noise


def measured(rng: np.random.Generator, within_sd: float, seeds, number: int = 256):
    """Children whose true values have variance 1, each measured as often as `seeds` says."""
    true = rng.standard_normal(number)
    noise = within_sd * rng.standard_normal((number, max(seeds)))
    values = {
        child: [float(true[i] + noise[i, j]) for j in range(seeds[i % len(seeds)])]
        for i, child in enumerate(CHILDREN[:number])
    }
    return true, values
