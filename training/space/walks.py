"""Walks over the sums of one choice per layer, layer by layer, in whole numbers only.

Partial sums whose completions inside all windows are the same are merged. A walk is therefore about as short as two
walks that meet in the middle of the layers. This module needs only the standard library.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from operator import add


# The largest number of transitions between partial sums before a walk is aborted: about three seconds and 250 MB.
MAX_TRANSITIONS = 300_000
# Limits the listed sums of the remaining layers, so that listing them takes a fraction of that.
_TRANSITIONS_PER_SUM = 5
_MAX_COUNTED_SUMS = 100_000

# The class of partial sums for which every completion stays inside the window; sums themselves are never negative.
SETTLED = -1

Class = tuple[int | tuple[int, int], ...]
Sums = tuple[int, ...]
Window = tuple[float, float]
"""The smallest and the largest allowed sum; infinite if there is no bound."""


class TooManySumsError(Exception):
    """The layers have too many distinct sums to walk over."""


class _Axis:
    """One window over one cost: what a partial sum implies for the remaining layers."""

    def __init__(self, layers: Sequence[Sequence[int]], window: Window, max_sums: int) -> None:
        self.layers = layers
        self._smallest, self._largest = window
        self._max_sums = max_sums
        # The first layer whose sums are listed.
        self._listed_from = len(layers) // 2
        self._rest = self._sums_of_rest()

    def _sums_of_rest(self) -> list[list[int]]:
        """For each layer, the sorted sums that it and the layers above it can have.

        Only the smallest and largest sum are stored for the first half of the layers, and where there are too many
        sums to list.
        """
        rest = [[0]]
        for layer in range(len(self.layers) - 1, -1, -1):
            counts, later = set(self.layers[layer]), rest[-1]
            if layer >= self._listed_from and len(later) <= self._max_sums:
                rest.append(sorted({count + other for count in counts for other in later}))
            else:
                self._listed_from = max(self._listed_from, layer + 1)
                rest.append([min(counts) + later[0], max(counts) + later[-1]])
        return rest[::-1]

    def class_of(self, layer: int, total: int) -> int | tuple[int, int] | None:
        """The class of partial sums before `layer` with the same possible completions; `None` if there are none.

        If the sums of the remaining layers are listed, the class is the range of positions of the completions among
        them. Many partial sums share a class, which keeps the walk as short as two walks that meet in the middle. In
        the first half, which has few sums of its own, only partial sums that no completion can take out of the window
        are merged.
        """
        rest = self._rest[layer]
        smallest, largest = self._smallest - total, self._largest - total
        if rest[0] > largest or rest[-1] < smallest:
            return None
        if smallest <= rest[0] and rest[-1] <= largest:
            return SETTLED
        if layer < self._listed_from:
            return total
        first, end = bisect_left(rest, smallest), bisect_right(rest, largest)
        return (first, end) if first < end else None


class Walk:
    """Partial sums of several costs, layer by layer, merged if their completions agree.

    Args:
        layers: a whole number per cost, for each option of each layer.
        windows: the smallest and largest allowed sum over the layers, for each cost.
        max_transitions: the largest number of transitions from one partial sum to the next, over all layers.
    """

    def __init__(
        self,
        layers: Sequence[Sequence[Sums]],
        windows: Sequence[Window],
        max_transitions: int = MAX_TRANSITIONS,
    ) -> None:
        self.layers = layers
        self._max_transitions = max_transitions
        self._num_transitions = 0
        self._axes = [
            _Axis(
                [[option[axis] for option in layer] for layer in layers],
                window,
                max_transitions // _TRANSITIONS_PER_SUM,
            )
            for axis, window in enumerate(windows)
        ]
        self.start: Sums = (0,) * len(windows)
        self.end: Class = (SETTLED,) * len(windows)

    def class_of(self, layer: int, sums: Sums) -> Class | None:
        """The class of partial sums before `layer`; `None` if a window can no longer be met."""
        shared = []
        for axis, total in zip(self._axes, sums, strict=True):
            one = axis.class_of(layer, total)
            if one is None:
                return None
            shared.append(one)
        return tuple(shared)

    def steps(self, layer: int, sums: Sums) -> Iterator[tuple[Sums, Class | None]]:
        """The partial sums after each option of `layer`, with their classes.

        Raises:
            TooManySumsError: the walk is too long.
        """
        self._num_transitions += len(self.layers[layer])
        if self._num_transitions > self._max_transitions:
            raise TooManySumsError
        for counts in self.layers[layer]:
            after = tuple(map(add, sums, counts))
            yield after, self.class_of(layer + 1, after)

    def arrows(self) -> list[dict[Class, list[Class | None]]]:
        """For each layer, the class that each option leads to from every reached class; `None` if it leaves a window.

        Raises:
            TooManySumsError: see `steps`.
        """
        first = self.class_of(0, self.start)
        level = {} if first is None else {first: self.start}
        arrows = []
        for layer in range(len(self.layers)):
            targets: dict[Class, list[Class | None]] = {shared: [] for shared in level}
            reached: dict[Class, Sums] = {}
            for shared, sums in level.items():
                for after, target in self.steps(layer, sums):
                    targets[shared].append(target)
                    if target is not None:
                        reached[target] = after
            arrows.append(targets)
            level = reached
        return arrows

    def is_feasible(self) -> bool:
        """Whether some choice is inside all windows. The search is depth-first and visits no class twice.

        Raises:
            TooManySumsError: see `steps`.
        """
        seen: set[tuple[int, Class]] = set()
        waiting = [] if self.class_of(0, self.start) is None else [(0, self.start)]
        while waiting:
            layer, sums = waiting.pop()
            if layer == len(self.layers):
                return True
            for after, shared in self.steps(layer, sums):
                if shared is not None and (layer + 1, shared) not in seen:
                    seen.add((layer + 1, shared))
                    waiting.append((layer + 1, after))
        return False

    def best_sum(self, axis: int, sign: int) -> int | None:
        """The smallest (`sign` 1) or largest (-1) sum of a cost among choices inside all windows; `None` if none is.

        Of the partial sums with the same completions, only the best can lead to the best sum.

        Raises:
            TooManySumsError: see `steps`.
        """
        first = self.class_of(0, self.start)
        level = {} if first is None else {first: self.start}
        for layer in range(len(self.layers)):
            reached: dict[Class, Sums] = {}
            for sums in level.values():
                for after, shared in self.steps(layer, sums):
                    if shared is None:
                        continue
                    best = reached.get(shared)
                    if best is None or sign * after[axis] < sign * best[axis]:
                        reached[shared] = after
            level = reached
        return sign * min(sign * sums[axis] for sums in level.values()) if level else None


def median_sum(layers: Sequence[Sequence[int]]) -> int:
    """The lower median of the sums of one number per layer, computed from the sums of the two halves of the layers.

    Raises:
        TooManySumsError: one of the halves has too many distinct sums.
    """
    half = len(layers) // 2
    bottom, top = _count_sums(layers[:half]), _count_sums(layers[half:])
    top_sums = sorted(top)
    at_most = [0, *accumulate(top[total] for total in top_sums)]
    middle = (math.prod(map(len, layers)) + 1) // 2
    low, high = min(bottom) + top_sums[0], max(bottom) + top_sums[-1]
    while low < high:
        guess = (low + high) // 2
        if sum(times * at_most[bisect_right(top_sums, guess - total)] for total, times in bottom.items()) >= middle:
            high = guess
        else:
            low = guess + 1
    return low


def _count_sums(layers: Sequence[Sequence[int]]) -> Counter[int]:
    """How often each sum of one number per layer occurs."""
    sums = Counter({0: 1})
    for counts in layers:
        if len(sums) > _MAX_COUNTED_SUMS:
            raise TooManySumsError
        longer: Counter[int] = Counter()
        for total, times in sums.items():
            for count in counts:
                longer[total + count] += times
        sums = longer
    return sums
