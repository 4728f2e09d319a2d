"""Draws children within a budget from spaces with too many distinct sums of costs to walk over.

Each layer draws its operator with a probability that falls exponentially with its costs, so that the mean child lies
at the edge of the budget. A child is then kept with the probability that makes all children within the budget equally
likely. The draws are exactly uniform and within the budget; only the number of children is an estimate.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


# In units of 1 / (range of a cost). Beyond it, a layer takes its cheapest or most expensive operator anyway.
_MAX_TILT = 1e6
# Children drawn at a time: few if most are kept.
_MIN_BATCH, _MAX_BATCH = 32, 4096
# Whole numbers above it are not exact as floats.
_MAX_EXACT = 2**53
# The number of kept children at which the standard error of a count is about 1%.
_COUNTED_CHILDREN = 10_000
_MAX_COUNTED_DRAWS = 2**17
# The largest rounding error in the logarithm of a bound.
_ROUNDING = 0.01


class Estimate(NamedTuple):
    """An estimated number of children, with its relative standard error."""

    size: int
    error: float


class TiltedDraws:
    """Uniform draws among the children whose sums are inside windows.

    The tilt is chosen so that most draws are kept: it minimises Chernoff's bound on the number of children.

    Args:
        layers: a whole number per cost, for each option of each layer.
        windows: the smallest and largest allowed sum for each cost; infinite if there is no bound.
    """

    def __init__(self, layers: Sequence[Sequence[Sequence[int]]], windows: Sequence[tuple[float, float]]) -> None:
        num_axes = len(windows)
        bases = [[min(option[axis] for option in layer) for axis in range(num_axes)] for layer in layers]
        num_options = max(map(len, layers))
        # Relative to the smallest cost of each layer, so that floats hold the sums exactly if their range allows it.
        self._costs = np.zeros((len(layers), num_options, num_axes))
        self._exists = np.zeros((len(layers), num_options), dtype=bool)
        for index, (layer, base) in enumerate(zip(layers, bases, strict=True)):
            self._exists[index, : len(layer)] = True
            self._costs[index, : len(layer)] = [
                [count - least for count, least in zip(option, base, strict=True)] for option in layer
            ]
        lowest = [sum(base[axis] for base in bases) for axis in range(num_axes)]
        self._smallest = np.array([low - least for (low, _), least in zip(windows, lowest, strict=True)], dtype=float)
        self._largest = np.array([high - least for (_, high), least in zip(windows, lowest, strict=True)], dtype=float)
        self._range = np.maximum(self._costs.max(axis=1).sum(axis=0), 1)
        self._slack = np.where(self._range < _MAX_EXACT, 0, 1e-12 * self._range)
        self._scaled = self._costs / self._range
        self._tilt, self._log_bound = self._best_tilt()
        logs = self._log_weights(self._tilt)
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
        self._cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
        # Rounding must never select an option that a layer does not have.
        self._cumulative[np.arange(num_options) >= self._exists.sum(axis=1)[:, None] - 1] = 1
        self._kept_share = 1.0

    @property
    def is_surely_empty(self) -> bool:
        """Whether Chernoff's bound proves that no child is inside the windows."""
        return self._log_bound < -_ROUNDING

    def draw(self, rng: np.random.Generator, max_draws: int = _MAX_COUNTED_DRAWS) -> list[int] | None:
        """Returns the options of one child, drawn uniformly; `None` if none of `max_draws` draws was kept."""
        num_drawn = 0
        while num_drawn < max_draws:
            size = int(np.clip(2 / self._kept_share, _MIN_BATCH, _MAX_BATCH))
            kept = self._kept(rng, size)
            num_drawn += size
            if len(kept):
                return kept[0].tolist()
        return None

    def estimate(self, rng: np.random.Generator) -> Estimate | None:
        """Returns the estimated number of children; `None` if no draw is kept."""
        num_drawn = num_kept = 0
        while num_kept < _COUNTED_CHILDREN and num_drawn < _MAX_COUNTED_DRAWS:
            num_kept += len(self._kept(rng, _MAX_BATCH))
            num_drawn += _MAX_BATCH
        if not num_kept:
            return None
        self._kept_share = num_kept / num_drawn
        error = math.sqrt((1 - self._kept_share) / num_kept)
        return Estimate(_exp(self._log_bound + math.log(self._kept_share)), error)

    def _best_tilt(self) -> tuple[np.ndarray, float]:
        """The tilt of each cost, positive towards small sums, and the logarithm of the resulting bound."""
        # Describing a space does not need scipy, which is only installed for searches.
        from scipy.optimize import minimize

        num_axes = len(self._range)
        low, high = self._smallest / self._range, self._largest / self._range
        has_low, has_high = np.isfinite(low), np.isfinite(high)
        low, high = np.where(has_low, low, 0), np.where(has_high, high, 0)

        def log_bound(tilts: np.ndarray) -> tuple[float, np.ndarray]:
            down, up = tilts[:num_axes], tilts[num_axes:]
            logs = self._log_weights(down - up)
            top = logs.max(axis=1, keepdims=True)
            weights = np.exp(logs - top)
            totals = weights.sum(axis=1, keepdims=True)
            mean = np.einsum("lo,loa->a", weights / totals, self._scaled)
            value = float((top + np.log(totals)).sum() + down @ high - up @ low)
            return value, np.concatenate([high - mean, mean - low])

        bounds = [(0, _MAX_TILT if has else 0) for has in (*has_high, *has_low)]
        found = minimize(log_bound, np.zeros(2 * num_axes), jac=True, method="L-BFGS-B", bounds=bounds)
        # Any tilts give a bound; the tilts of the two ends of a window cancel.
        down, up = found.x[:num_axes], found.x[num_axes:]
        both = np.minimum(down, up)
        value, _ = log_bound(np.concatenate([down - both, up - both]))
        return down - up, value

    def _log_weights(self, tilt: np.ndarray) -> np.ndarray:
        return np.where(self._exists, -(self._scaled @ tilt), -np.inf)

    def _kept(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """The options of the kept children among `size` draws: (kept, layers)."""
        num_layers = len(self._costs)
        numbers, options = rng.random((size, num_layers)), np.zeros((size, num_layers), dtype=np.intp)
        # One edge and one cost at a time: much faster than sums over such short axes.
        for edges in self._cumulative.T[:-1]:
            options += numbers >= edges
        layers, sums = np.arange(num_layers), np.empty((size, len(self._range)))
        for axis in range(len(self._range)):
            sums[:, axis] = self._costs[layers, options, axis].sum(axis=1)
        inside = (sums >= self._smallest - self._slack) & (sums <= self._largest + self._slack)
        ends = np.where(self._tilt > 0, self._largest, self._smallest)
        # Without a tilt, an end may be infinite and does not matter.
        distance = np.where(self._tilt == 0, 0, sums - np.where(self._tilt == 0, 0, ends)) / self._range
        return options[inside.all(axis=1) & (np.log1p(-rng.random(size)) <= distance @ self._tilt)]


def _exp(logarithm: float) -> int:
    """The whole number nearest to an exponential that may be too large for a float."""
    exponent = logarithm / math.log(2)
    shift = max(0, math.floor(exponent) - 52)
    return round(2 ** (exponent - shift)) << shift
