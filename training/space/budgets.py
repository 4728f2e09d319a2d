"""Costs, budgets, and the children of a search space that are within a budget: counted, summarised and drawn.

A cost is a sum over layers. Because the same operators occur in many layers, there are few distinct sums even if there
are many children: 26 layers of 4 operators have 4.5e15 children but only 3,654 sums. This module walks over the sums,
layer by layer, in whole numbers only, so its results are exact. Many operators in many layers have too many sums for
that: 64 layers of 8 operators have up to 1.3e9. In that case `tilting` draws the children, still uniformly, and their
number is an estimate that is marked as one.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from statistics import median_low

import numpy as np

from .search_space import Architecture, SearchSpace
from .tilting import TiltedDraws
from .walks import MAX_TRANSITIONS, Class, TooManySumsError, Walk, Window, median_sum


# Maximum lengths of walks: before falling back to drawing, and for details that are only reported with an error.
_SHORT_WALK, _MIDDLE_WALK = 20_000, 60_000
# Number of random children that estimate the median of a space with too many sums; its rank is off by half a percent.
_NUM_MEDIAN_CHILDREN = 10_001


@dataclass(frozen=True)
class AdditiveCost:
    """A cost that is a constant plus a sum over layers of a cost of the operator.

    Costs are stored as whole numbers, so sums are exact.

    Attributes:
        name: the quantity and its unit: "num_parameters", "flops", "latency_ms" or "activation_mb".
        fixed: the cost outside the layers, a whole number.
        operators: the cost of each operator, by name, in whole numbers.
        unit: the value of 1 in the unit of the name; 1e-6 for a latency in milliseconds stored in nanoseconds.
    """

    name: str
    fixed: int
    operators: Mapping[str, int] = field(hash=False)
    unit: float = 1

    def __post_init__(self) -> None:
        for what, count in (("the constant", self.fixed), *self.operators.items()):
            if not isinstance(count, int) or count < 0:
                raise ValueError(f"{self.name} of {what} is {count!r}; it must be a whole number of at least 0")
        if not 0 < self.unit < math.inf:
            raise ValueError(f"the unit of {self.name} is {self.unit}; it must be a positive number")

    def __call__(self, architecture: Sequence[str]) -> float:
        """The cost of a child in the unit of the name; an int if `unit` is 1."""
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
        return f"{self.name} is unknown for the operator {operator!r}; known operators: {', '.join(self.operators)}"

    @cached_property
    def _exact_unit(self) -> Fraction:
        # The decimal as written: with it, a printed value that is read back gives exactly the same count.
        return Fraction(str(self.unit))

    def largest_count(self, value: float) -> int:
        """The largest whole number whose value is at most `value`."""
        count = math.floor(value) if self.unit == 1 else math.floor(value / self.unit)
        # The division is off by at most a few.
        while self.value(count) > value:
            count -= 1
        while self.value(count + 1) <= value:
            count += 1
        return count

    def smallest_count(self, value: float) -> int:
        """The smallest whole number whose value is at least `value`."""
        count = self.largest_count(value) + 1
        # Whole numbers beyond the precision of a float can share a value.
        while self.value(count - 1) >= value:
            count -= 1
        return count


@dataclass(frozen=True)
class Limit:
    """An allowed range for one cost.

    Attributes:
        cost: the cost that is limited.
        minimum: the smallest allowed value, in the cost's unit; `None` for no minimum.
        maximum: the largest allowed value; `None` for no maximum.

    Raises:
        ValueError: a bound is negative, infinite or NaN, the minimum is above the maximum, or there is no bound.
    """

    cost: AdditiveCost
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        for bound, value in (("minimum", self.minimum), ("maximum", self.maximum)):
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(
                    f"the {bound} of {self.cost.name} is {value}; give a number of at least 0, or omit it"
                )
        if self.minimum is None and self.maximum is None:
            raise ValueError(f"the limit of {self.cost.name} has no bound; give a minimum or a maximum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(
                f"the minimum of {self.cost.name}, {format_value(self.minimum)}, is above its maximum, "
                f"{format_value(self.maximum)}; swap them"
            )

    @cached_property
    def counts(self) -> tuple[float, float]:
        """The smallest and the largest allowed whole number; infinite if there is no bound."""
        smallest = -math.inf if self.minimum is None else self.cost.smallest_count(self.minimum)
        largest = math.inf if self.maximum is None else self.cost.largest_count(self.maximum)
        return smallest, largest

    def allows(self, architecture: Sequence[str]) -> bool:
        """Whether a child's cost is within the limit."""
        smallest, largest = self.counts
        return smallest <= self.cost.count(architecture) <= largest

    def __str__(self) -> str:
        low = "" if self.minimum is None else format_value(self.minimum)
        high = "" if self.maximum is None else format_value(self.maximum)
        if not low:
            return f"{self.cost.name} <= {high}"
        return f"{low} <= {self.cost.name} <= {high}" if high else f"{self.cost.name} >= {low}"


def format_value(value: float) -> str:
    """A cost as text, with thousands separators and all digits needed to tell it from neighbouring values."""
    return f"{value:,}".removesuffix(".0")


def short_text(number: int) -> str:
    """A whole number of any size with three digits, such as 4.50e+15; all digits if it is below a million."""
    return f"{number:,}" if number < 10**6 else f"{Decimal(number):.2e}"


@dataclass(frozen=True)
class Budget:
    """What a child may cost. A child must be within all limits; without limits, every child is allowed."""

    limits: tuple[Limit, ...] = ()

    def allows(self, architecture: Sequence[str]) -> bool:
        """Whether a child is within the budget."""
        return all(limit.allows(architecture) for limit in self.limits)

    def __str__(self) -> str:
        return " and ".join(map(str, self.limits)) or "no limit"

    def __repr__(self) -> str:
        return f"Budget({self})"


class InfeasibleBudgetError(ValueError):
    """No child of the space is within the budget; the message gives the nearest reachable values."""


@dataclass(frozen=True)
class NearestValues:
    """The reachable values nearest to one limit of a budget that no child meets.

    Attributes:
        limit: the limit.
        below: the largest value below the limit among the children within all other limits; `None` if there is none.
        above: the smallest such value above the limit; `None` if there is none.
        others_met: whether some child is within all other limits. If not, `below` and `above` refer to all children,
            and both are `None` if this limit alone can be met.
        is_known: whether `below` and `above` could be determined; a space may have too many sums for that.
    """

    limit: Limit
    below: float | None
    above: float | None
    others_met: bool
    is_known: bool = True

    def __str__(self) -> str:
        name = self.limit.cost.name
        if not self.is_known:
            return f"the nearest value of {name} that a child has is unknown: there are too many distinct sums of it"
        values = [f"{format_value(self.below)}, below the limit"] if self.below is not None else []
        values += [f"{format_value(self.above)}, above the limit"] if self.above is not None else []
        reachable = f"the nearest value of {name} that a child has is {', and '.join(values)}"
        if self.others_met:
            return reachable
        return f"the limits other than {name} cannot be met" + (f"; without them, {reachable}" if values else "")


class WideBudgetError(ValueError):
    """The space has too many sums to walk over, and random draws found no child within the budget."""


def _layers_of(space: SearchSpace, costs: Sequence[AdditiveCost]) -> list[list[tuple[int, ...]]]:
    """The whole number of each cost, for each operator of each layer."""
    return [
        [tuple(counts) for counts in zip(*(cost.layer_counts(layer) for cost in costs), strict=True)]
        if costs
        else [()] * len(layer)
        for layer in space.candidates
    ]


def _window_of(limit: Limit) -> Window:
    """The smallest and largest allowed sum over the layers."""
    smallest, largest = limit.counts
    return smallest - limit.cost.fixed, largest - limit.cost.fixed


def is_feasible(space: SearchSpace, budget: Budget) -> bool:
    """Whether some child of the space is within the budget; cheaper than counting them.

    The answer is exact except for spaces with too many sums. There it is False if neither a walk nor many draws find
    a child.
    """
    layers, windows = _layers_of(space, [limit.cost for limit in budget.limits]), [*map(_window_of, budget.limits)]
    with suppress(TooManySumsError):
        return Walk(layers, windows, _SHORT_WALK).is_feasible()
    draws = TiltedDraws(layers, windows)
    if draws.is_surely_empty:
        return False
    return draws.draw(np.random.default_rng(0), _SHORT_WALK) is not None


class BudgetedSpace:
    """Counts and draws the children of a space that are within a budget.

    Draws are uniform, and every drawn child is within the budget. The count is exact if the space has few enough
    distinct sums of costs, and an estimate otherwise; see `is_exact`.

    Args:
        space: the children to choose from.
        budget: the limits on their costs.
        max_transitions: the longest walk over sums of costs; spaces that need a longer one are sampled without a walk.

    Attributes:
        size: the number of children within the budget; 0 only if there is provably none.
        is_exact: whether `size` is exact.
        size_error: the relative standard error of `size`; 0 if it is exact.

    Raises:
        WideBudgetError: the children can neither be counted nor drawn.
    """

    def __init__(self, space: SearchSpace, budget: Budget, max_transitions: int = MAX_TRANSITIONS) -> None:
        self.space = space
        self.budget = budget
        self._max_transitions = max_transitions
        layers, windows = _layers_of(space, [limit.cost for limit in budget.limits]), [*map(_window_of, budget.limits)]
        self._way: _Counted | _Drawn
        try:
            self._way = _Counted(space, Walk(layers, windows, max_transitions))
        except TooManySumsError:
            self._way = _Drawn(space, budget, TiltedDraws(layers, windows))
        self.size = self._way.size
        self.size_error = self._way.size_error
        self.is_exact = isinstance(self._way, _Counted)

    def __contains__(self, architecture: object) -> bool:
        return architecture in self.space and self.budget.allows(architecture)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"BudgetedSpace({self.size_text} of {short_text(self.space.size)} children, {self.budget})"

    @property
    def size_text(self) -> str:
        """The size as text: all digits if it is exact, otherwise an estimate with its error."""
        if self.is_exact:
            return f"{self.size:,}"
        percent = float(f"{100 * self.size_error:.1g}")
        return f"about {short_text(self.size)} (estimated, standard error {percent:g}%)"

    def check(self) -> None:
        """Raise an InfeasibleBudgetError if no child is within the budget."""
        if self.size == 0:
            nearest = self.nearest()
            is_any_known = any(values.below is not None or values.above is not None for values in nearest)
            remedy = "move a limit to a reachable value" if is_any_known else "widen or remove a limit"
            raise InfeasibleBudgetError(
                f"no child of the space is within the budget {self.budget}: {'; '.join(map(str, nearest))}; {remedy}"
            )

    def sample(self, rng: random.Random) -> Architecture:
        """A child drawn uniformly from those within the budget.

        Raises:
            InfeasibleBudgetError: no child is within the budget.
        """
        self.check()
        return self._way.sample(rng)

    def children(self) -> Iterator[Architecture]:
        """Every child within the budget once, the last layer changing fastest; check `size` before iterating."""
        return self._way.children()

    def nearest(self) -> tuple[NearestValues, ...]:
        """For each limit, the nearest values outside it that can be reached while the other limits are met."""
        limits = self.budget.limits
        return tuple(_nearest(self.space, limit, (*limits[:i], *limits[i + 1 :])) for i, limit in enumerate(limits))

    def restricted(self, space: SearchSpace) -> "BudgetedSpace":
        """The same budget over another space, such as the operators of two parents.

        Raises:
            WideBudgetError: the children can neither be counted nor drawn.
        """
        # Parts of a space that is too wide to walk over are often too wide as well, and a search asks for many parts.
        return BudgetedSpace(space, self.budget, self._max_transitions if self.is_exact else _SHORT_WALK)


class _Counted:
    """The children within a budget, numbered with the help of the sums of their costs."""

    size_error = 0.0

    def __init__(self, space: SearchSpace, walk: Walk) -> None:
        # Empty if no child meets the budget; no choices are stored in that case.
        self._first = walk.class_of(0, walk.start) or ()
        # For each layer and class of partial sums: the operators, the number of children through each, and the class
        # that each leads to.
        self._choices: list[dict[Class, list[tuple[str, int, Class]]]] = []
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

    def sample(self, rng: random.Random) -> Architecture:
        return self._child(rng.randrange(self.size))

    def children(self) -> Iterator[Architecture]:
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


class _Drawn:
    """The children within a budget, found by random draws."""

    def __init__(self, space: SearchSpace, budget: Budget, draws: TiltedDraws) -> None:
        self._space, self._budget, self._draws = space, budget, draws
        self.size, self.size_error = 0, 0.0
        if not draws.is_surely_empty:
            estimate = draws.estimate(np.random.default_rng(0))
            if estimate is None:
                raise WideBudgetError(
                    f"the children within the budget {budget} can neither be counted nor drawn: the space of "
                    f"{space.num_layers} layers has too many distinct sums of costs to walk over, and random draws "
                    f"found no child within all limits; widen the narrowest limit, give fewer limits, or choose a "
                    f"space with fewer operators"
                )
            # At least one child was found, whatever the estimate is.
            self.size, self.size_error = max(1, estimate.size), estimate.error

    def sample(self, rng: random.Random) -> Architecture:
        generator = np.random.default_rng(rng.getrandbits(128))
        while True:
            options = self._draws.draw(generator)
            if options is None:
                continue
            child = tuple(layer[option] for layer, option in zip(self._space.candidates, options, strict=True))
            # Sums beyond the precision of floats are checked against the limits once more.
            if self._budget.allows(child):
                return child

    def children(self) -> Iterator[Architecture]:
        return (child for child in self._space.children() if self._budget.allows(child))


def _nearest(space: SearchSpace, limit: Limit, others: Sequence[Limit]) -> NearestValues:
    others_met = is_feasible(space, Budget(tuple(others)))
    if not others_met:
        others = ()
        if is_feasible(space, Budget((limit,))):
            return NearestValues(limit, None, None, others_met)
    smallest, largest = _window_of(limit)
    layers = _layers_of(space, [limit.cost, *(other.cost for other in others)])
    windows = [_window_of(other) for other in others]
    try:
        above = Walk(layers, [(largest + 1, math.inf), *windows], _MIDDLE_WALK).best_sum(0, 1)
        below = Walk(layers, [(-math.inf, smallest - 1), *windows], _MIDDLE_WALK).best_sum(0, -1)
    except TooManySumsError:
        return NearestValues(limit, None, None, others_met, is_known=False)
    cost = limit.cost
    return NearestValues(
        limit,
        below=None if below is None else cost.value(cost.fixed + below),
        above=None if above is None else cost.value(cost.fixed + above),
        others_met=others_met,
    )


@dataclass(frozen=True)
class CostSummary:
    """The range of a cost over the children of a space.

    Attributes:
        smallest: the smallest value.
        median: the lower median, a value that some child has.
        largest: the largest value.
        smallest_child: a child with the smallest value.
        largest_child: a child with the largest value.
        median_is_exact: whether `median` is taken over all children; otherwise it is taken over a large sample.
    """

    smallest: float
    median: float
    largest: float
    smallest_child: Architecture
    largest_child: Architecture
    median_is_exact: bool = True


def summarize_cost(space: SearchSpace, cost: AdditiveCost) -> CostSummary:
    """The smallest, median and largest cost in a space; all are exact except for the median of a very wide space."""
    layers = [cost.layer_counts(layer) for layer in space.candidates]
    try:
        median, is_exact = median_sum(layers), True
    except TooManySumsError:
        rng = random.Random(0)
        drawn = [sum(rng.choice(counts) for counts in layers) for _ in range(_NUM_MEDIAN_CHILDREN)]
        median, is_exact = median_low(drawn), False
    smallest_child = tuple(min(layer, key=cost.operators.__getitem__) for layer in space.candidates)
    largest_child = tuple(max(layer, key=cost.operators.__getitem__) for layer in space.candidates)
    return CostSummary(
        smallest=cost(smallest_child),
        median=cost.value(cost.fixed + median),
        largest=cost(largest_child),
        smallest_child=smallest_child,
        largest_child=largest_child,
        median_is_exact=is_exact,
    )
