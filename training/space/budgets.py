"""Costs, budgets, and the children of a search space that are within a budget: counted, summarised and drawn exactly.

A cost is a sum over layers, and operators come again in many layers, so that few sums are distinct although the
children are many: 26 layers of 4 operators have 4.5e15 children and 3,654 sums. This module walks over sums, layer by
layer, with whole numbers only. This module needs the standard library only.
"""

import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from operator import add
from typing import NamedTuple

from .search_space import Architecture, SearchSpace


@dataclass(frozen=True)
class AdditiveCost:
    """A cost that is a constant plus a sum over layers of a cost of the operator.

    Kept in whole numbers, so that sums are exact.

    Attributes:
        name: what is counted, with its unit: "num_parameters", "flops", "latency_ms", "activation_mb".
        fixed: the whole number outside the layers.
        operators: the whole number of each operator, by its name.
        unit: what one stands for, in the unit of the name; 1e-6 for a latency in milliseconds kept in nanoseconds.
    """

    name: str
    fixed: int
    operators: Mapping[str, int] = field(hash=False)
    unit: float = 1

    def __post_init__(self) -> None:
        for what, count in (("the constant", self.fixed), *self.operators.items()):
            if not isinstance(count, int) or count < 0:
                raise ValueError(f"{self.name} of {what} is {count!r}; give a whole number from 0")
        if not 0 < self.unit < math.inf:
            raise ValueError(f"the unit of {self.name} is {self.unit}; it must be a positive number")

    def __call__(self, architecture: Sequence[str]) -> float:
        """The cost of a child in the unit of the name; an int where `unit` is 1."""
        return self.value(self.count(architecture))

    def count(self, architecture: Sequence[str]) -> int:
        """The cost of a child as a whole number."""
        try:
            return self.fixed + sum([self.operators[operator] for operator in architecture])
        except KeyError as error:
            raise ValueError(self._unknown(error.args[0])) from None

    def value(self, count: int) -> float:
        """The whole number `count` in the unit of the name."""
        return count if self.unit == 1 else float(count * self._exact_unit)

    def layer_counts(self, layer: Sequence[str]) -> tuple[int, ...]:
        """The whole numbers of the candidates of a layer."""
        for operator in layer:
            if operator not in self.operators:
                raise ValueError(self._unknown(operator))
        return tuple(self.operators[operator] for operator in layer)

    def _unknown(self, operator: str) -> str:
        return f"{self.name} is not known of the operator {operator!r}; known: {', '.join(self.operators)}"

    @cached_property
    def _exact_unit(self) -> Fraction:
        # The decimal that was written: with it, a value that is printed is the very value of its count when read back.
        return Fraction(str(self.unit))

    def largest_count(self, value: float) -> int:
        """The largest whole number whose value is at most `value`."""
        count = math.floor(value) if self.unit == 1 else math.floor(value / self.unit)
        # The division is off by a few at most.
        while self.value(count) > value:
            count -= 1
        while self.value(count + 1) <= value:
            count += 1
        return count

    def smallest_count(self, value: float) -> int:
        """The smallest whole number whose value is at least `value`."""
        count = self.largest_count(value) + 1
        # Whole numbers beyond the precision of a float share values.
        while self.value(count - 1) >= value:
            count -= 1
        return count


@dataclass(frozen=True)
class Limit:
    """A window for one cost.

    Attributes:
        cost: what is limited.
        minimum: the smallest value allowed, in the cost's unit; `None` for no such bound.
        maximum: the largest value allowed; `None` for no such bound.

    Raises:
        ValueError: a bound that is negative, infinite or not a number, a minimum above the maximum, or no bound.
    """

    cost: AdditiveCost
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        for bound, value in (("minimum", self.minimum), ("maximum", self.maximum)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"the {bound} of {self.cost.name} is {value}; give a number from 0, or leave it out")
        if self.minimum is None and self.maximum is None:
            raise ValueError(f"the limit of {self.cost.name} has no bound; give a minimum or a maximum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(
                f"the minimum of {self.cost.name}, {format_value(self.minimum)}, is above its maximum, "
                f"{format_value(self.maximum)}; swap them"
            )

    @cached_property
    def counts(self) -> tuple[float, float]:
        """The smallest and the largest whole number allowed; infinite where there is no bound."""
        smallest = -math.inf if self.minimum is None else self.cost.smallest_count(self.minimum)
        largest = math.inf if self.maximum is None else self.cost.largest_count(self.maximum)
        return smallest, largest

    def allows(self, architecture: Sequence[str]) -> bool:
        """Whether a child's cost is inside the window."""
        smallest, largest = self.counts
        return smallest <= self.cost.count(architecture) <= largest

    def __str__(self) -> str:
        low = "" if self.minimum is None else format_value(self.minimum)
        high = "" if self.maximum is None else format_value(self.maximum)
        if not low:
            return f"{self.cost.name} <= {high}"
        return f"{low} <= {self.cost.name} <= {high}" if high else f"{self.cost.name} >= {low}"


def format_value(value: float) -> str:
    """A cost as text: thousands apart, every digit that tells it from its neighbours."""
    return f"{value:,}".removesuffix(".0")


@dataclass(frozen=True)
class Budget:
    """What a child may cost: inside every one of the limits; without limits every child is allowed."""

    limits: tuple[Limit, ...] = ()

    def allows(self, architecture: Sequence[str]) -> bool:
        """Whether a child is within the budget."""
        return all(limit.allows(architecture) for limit in self.limits)

    def __str__(self) -> str:
        return " and ".join(map(str, self.limits)) or "no limit"


class InfeasibleBudgetError(ValueError):
    """No child of the space is within the budget; the message names the nearest values that can be reached."""


@dataclass(frozen=True)
class NearestValues:
    """What a limit would have to let in for a budget that no child meets.

    Attributes:
        limit: the limit.
        below: the largest value under the window that a child within all the other limits has; `None` for none.
        above: the smallest such value over the window; `None` for none.
        others_met: whether some child is within all the other limits. Where none is, `below` and `above` are those of
            all children, and both are `None` if this limit alone can be met.
    """

    limit: Limit
    below: float | None
    above: float | None
    others_met: bool

    def __str__(self) -> str:
        name = self.limit.cost.name
        values = [f"{format_value(self.below)} below the window"] if self.below is not None else []
        values += [f"{format_value(self.above)} above the window"] if self.above is not None else []
        reachable = f"the nearest reachable {name} is {' and '.join(values)}"
        if self.others_met:
            return reachable
        return f"the limits other than {name} cannot be met" + (f", and without them {reachable}" if values else "")


class _Window(NamedTuple):
    """The whole numbers that the sum of `cost` over the layers and its constant may be."""

    cost: AdditiveCost
    smallest: float
    largest: float

    @classmethod
    def of(cls, limit: Limit) -> "_Window":
        return cls(limit.cost, *limit.counts)


# The class of partial sums with which no completion leaves the window; sums themselves are never negative.
_SETTLED = -1


class _Axis:
    """One window over one space: what a partial sum means for the layers that are still to come."""

    def __init__(self, space: SearchSpace, window: _Window) -> None:
        self.layers = [window.cost.layer_counts(layer) for layer in space.candidates]
        self._smallest, self._largest = window.smallest - window.cost.fixed, window.largest - window.cost.fixed
        self._half = space.num_layers // 2
        self._rest = self._sums_of_rest()

    def _sums_of_rest(self) -> list[list[int]]:
        """For each layer the sorted sums that it and the layers above it can have; in the first half their ends."""
        rest = [[0]]
        for layer in range(len(self.layers) - 1, -1, -1):
            counts, later = set(self.layers[layer]), rest[-1]
            if layer >= self._half:
                rest.append(sorted({count + other for count in counts for other in later}))
            else:
                rest.append([min(counts) + later[0], max(counts) + later[-1]])
        return rest[::-1]

    def class_of(self, layer: int, total: int) -> int | tuple[int, int] | None:
        """What partial sums before `layer` with the same possible completions share; `None` where there are none.

        In the second half these are the positions of the completions in the sorted sums of the layers to come. That
        many partial sums share them keeps the walk as short as one to the middle of the space from both ends. In the
        first half, whose own sums are few, only those are put together with which no completion leaves the window.
        """
        rest = self._rest[layer]
        smallest, largest = self._smallest - total, self._largest - total
        if rest[0] > largest or rest[-1] < smallest:
            return None
        if smallest <= rest[0] and rest[-1] <= largest:
            return _SETTLED
        if layer < self._half:
            return total
        first, end = bisect_left(rest, smallest), bisect_right(rest, largest)
        return (first, end) if first < end else None


_Class = tuple[int | tuple[int, int], ...]
_Sums = tuple[int, ...]


class _Walk:
    """Partial sums of several windows over one space, layer by layer, put together where their completions agree."""

    def __init__(self, space: SearchSpace, windows: Sequence[_Window]) -> None:
        self._axes = [_Axis(space, window) for window in windows]
        self.layers: list[list[_Sums]] = [
            [tuple(axis.layers[layer][option] for axis in self._axes) for option in range(len(candidates))]
            for layer, candidates in enumerate(space.candidates)
        ]
        self.start: _Sums = (0,) * len(self._axes)
        self.end: _Class = (_SETTLED,) * len(self._axes)

    def class_of(self, layer: int, sums: _Sums) -> _Class | None:
        """The class of partial sums before `layer`, `None` where a window can no longer be met."""
        shared = []
        for axis, total in zip(self._axes, sums, strict=True):
            one = axis.class_of(layer, total)
            if one is None:
                return None
            shared.append(one)
        return tuple(shared)

    def steps(self, layer: int, sums: _Sums) -> Iterator[tuple[_Sums, _Class | None]]:
        """The partial sums after each candidate of `layer`, and their class."""
        for counts in self.layers[layer]:
            after = tuple(map(add, sums, counts))
            yield after, self.class_of(layer + 1, after)

    def arrows(self) -> list[dict[_Class, list[_Class | None]]]:
        """For each layer where the candidates lead from every class that is reached; `None` leads out of a window."""
        first = self.class_of(0, self.start)
        level = {} if first is None else {first: self.start}
        arrows = []
        for layer in range(len(self.layers)):
            targets: dict[_Class, list[_Class | None]] = {shared: [] for shared in level}
            reached: dict[_Class, _Sums] = {}
            for shared, sums in level.items():
                for after, target in self.steps(layer, sums):
                    targets[shared].append(target)
                    if target is not None:
                        reached[target] = after
            arrows.append(targets)
            level = reached
        return arrows

    def is_feasible(self) -> bool:
        """Whether some child is inside all windows: depth first, no class twice."""
        seen: set[tuple[int, _Class]] = set()
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
        """The smallest (`sign` 1) or largest (-1) sum of an axis among children inside all windows; `None` for none.

        Of partial sums with the same completions only the best can lead to the best.
        """
        first = self.class_of(0, self.start)
        level = {} if first is None else {first: self.start}
        for layer in range(len(self.layers)):
            reached: dict[_Class, _Sums] = {}
            for sums in level.values():
                for after, shared in self.steps(layer, sums):
                    if shared is None:
                        continue
                    best = reached.get(shared)
                    if best is None or sign * after[axis] < sign * best[axis]:
                        reached[shared] = after
            level = reached
        return sign * min(sign * sums[axis] for sums in level.values()) if level else None


def is_feasible(space: SearchSpace, budget: Budget) -> bool:
    """Whether some child of the space is within the budget; cheaper than to count them."""
    return _Walk(space, [_Window.of(limit) for limit in budget.limits]).is_feasible()


class BudgetedSpace:
    """The children of a space that are within a budget, counted and drawn exactly.

    Args:
        space: the children to choose from.
        budget: what they may cost.

    Attributes:
        size: number of children within the budget, exact.
    """

    def __init__(self, space: SearchSpace, budget: Budget) -> None:
        self.space = space
        self.budget = budget
        walk = _Walk(space, [_Window.of(limit) for limit in budget.limits])
        # Empty where the space as a whole is out of reach; no choices are kept for it then.
        self._first = walk.class_of(0, walk.start) or ()
        # For each layer and class of partial sums: operators, number of children through each, and where they lead.
        self._choices: list[dict[_Class, list[tuple[str, int, _Class]]]] = []
        completions = {walk.end: 1}
        for candidates, arrows in zip(reversed(space.candidates), reversed(walk.arrows()), strict=True):
            choices = {
                shared: [
                    (operator, completions[target], target)
                    for operator, target in zip(candidates, targets, strict=True)
                    if target is not None and target in completions
                ]
                for shared, targets in arrows.items()
            }
            completions = {
                shared: sum(through for _, through, _ in options) for shared, options in choices.items() if options
            }
            self._choices.append(choices)
        self._choices.reverse()
        self.size = completions.get(self._first, 0)

    def __contains__(self, architecture: object) -> bool:
        return architecture in self.space and self.budget.allows(architecture)  # type: ignore[arg-type]

    def check(self) -> None:
        """Raise an InfeasibleBudgetError where no child is within the budget."""
        if self.size == 0:
            hints = "; ".join(map(str, self.nearest()))
            raise InfeasibleBudgetError(
                f"no child of the space is within the budget {self.budget}: {hints}; move a limit to a reachable value"
            )

    def sample(self, rng: random.Random) -> Architecture:
        """A child drawn uniformly from those within the budget.

        Raises:
            InfeasibleBudgetError: there is none.
        """
        self.check()
        return self._child(rng.randrange(self.size))

    def children(self) -> Iterator[Architecture]:
        """Every child within the budget once, the last layer changing fastest; look at `size` before walking them."""
        return map(self._child, range(self.size))

    def _child(self, number: int) -> Architecture:
        shared = self._first
        child = []
        for choices in self._choices:
            for operator, through, target in choices[shared]:
                if number < through:
                    child.append(operator)
                    shared = target
                    break
                number -= through
        return tuple(child)

    def nearest(self) -> tuple[NearestValues, ...]:
        """For each limit the values next to its window that can be reached while the other limits are met."""
        limits = self.budget.limits
        return tuple(_nearest(self.space, limit, (*limits[:i], *limits[i + 1 :])) for i, limit in enumerate(limits))

    def restricted(self, space: SearchSpace) -> "BudgetedSpace":
        """The same budget over another space, such as what two parents leave open."""
        return BudgetedSpace(space, self.budget)


def _nearest(space: SearchSpace, limit: Limit, others: Sequence[Limit]) -> NearestValues:
    windows = [_Window.of(other) for other in others]
    others_met = _Walk(space, windows).is_feasible()
    if not others_met:
        windows = []
        if _Walk(space, [_Window.of(limit)]).is_feasible():
            return NearestValues(limit, None, None, others_met)
    smallest, largest = limit.counts
    over = _Window(limit.cost, largest + 1, math.inf)
    under = _Window(limit.cost, -math.inf, smallest - 1)
    above = _Walk(space, [over, *windows]).best_sum(0, 1)
    below = _Walk(space, [under, *windows]).best_sum(0, -1)
    cost = limit.cost
    return NearestValues(
        limit,
        below=None if below is None else cost.value(cost.fixed + below),
        above=None if above is None else cost.value(cost.fixed + above),
        others_met=others_met,
    )


@dataclass(frozen=True)
class CostSummary:
    """What the children of a space cost.

    Attributes:
        smallest: the smallest value.
        median: half of the children cost at most this; of two middle values the smaller, so that a child has it.
        largest: the largest value.
        smallest_child: a child of the smallest value.
        largest_child: a child of the largest value.
    """

    smallest: float
    median: float
    largest: float
    smallest_child: Architecture
    largest_child: Architecture


def summarize_cost(space: SearchSpace, cost: AdditiveCost) -> CostSummary:
    """The smallest, median and largest cost of the children of a space, exact."""
    layers = [cost.layer_counts(layer) for layer in space.candidates]
    smallest_child = tuple(min(layer, key=cost.operators.__getitem__) for layer in space.candidates)
    largest_child = tuple(max(layer, key=cost.operators.__getitem__) for layer in space.candidates)
    return CostSummary(
        smallest=cost(smallest_child),
        median=cost.value(cost.fixed + _median_sum(layers)),
        largest=cost(largest_child),
        smallest_child=smallest_child,
        largest_child=largest_child,
    )


def _median_sum(layers: Sequence[Sequence[int]]) -> int:
    """The lower median of the sums of one number from each layer, from the sums of either half of the layers."""
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
    """How often each sum of one number from each layer occurs."""
    sums = Counter({0: 1})
    for counts in layers:
        longer: Counter[int] = Counter()
        for total, times in sums.items():
            for count in counts:
                longer[total + count] += times
        sums = longer
    return sums
