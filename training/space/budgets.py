"""Costs, budgets, and the children of a search space that are within a budget: counted, summarised and drawn.

A cost is a sum over layers, and operators come again in many layers, so that few sums are distinct although the
children are many: 26 layers of 4 operators have 4.5e15 children and 3,654 sums. This module walks over sums, layer by
layer, with whole numbers only, and is exact. Many operators in many layers have too many sums for that: 64 layers of 8
have up to 1.3e9. Children are then drawn by `tilting`, as uniformly, and their number is an estimate that says so.
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


# Lengths of walks that are tried before a child is drawn, and for what is only told beside an error.
_SHORT_WALK, _MIDDLE_WALK = 20_000, 60_000
# Random children whose median stands for that of a space with too many sums: half a percent of all off in rank.
_NUM_MEDIAN_CHILDREN = 10_001


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


def short_text(number: int) -> str:
    """A whole number with three digits, such as 4.50e+15, though no float may hold it; all digits below a million."""
    return f"{number:,}" if number < 10**6 else f"{Decimal(number):.2e}"


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
        is_known: whether `below` and `above` could be told; a space may have too many sums for that.
    """

    limit: Limit
    below: float | None
    above: float | None
    others_met: bool
    is_known: bool = True

    def __str__(self) -> str:
        name = self.limit.cost.name
        if not self.is_known:
            return f"the nearest reachable {name} is not known, since the space has too many distinct sums of it"
        values = [f"{format_value(self.below)} below the window"] if self.below is not None else []
        values += [f"{format_value(self.above)} above the window"] if self.above is not None else []
        reachable = f"the nearest reachable {name} is {' and '.join(values)}"
        if self.others_met:
            return reachable
        return f"the limits other than {name} cannot be met" + (f", and without them {reachable}" if values else "")


class WideBudgetError(ValueError):
    """The space has too many sums to walk over, and draws have found no child within the budget."""


def _layers_of(space: SearchSpace, costs: Sequence[AdditiveCost]) -> list[list[tuple[int, ...]]]:
    """For each layer and each of its operators the whole number of each cost."""
    return [
        [tuple(counts) for counts in zip(*(cost.layer_counts(layer) for cost in costs), strict=True)]
        if costs
        else [()] * len(layer)
        for layer in space.candidates
    ]


def _window_of(limit: Limit) -> Window:
    """What the sum over the layers may be."""
    smallest, largest = limit.counts
    return smallest - limit.cost.fixed, largest - limit.cost.fixed


def is_feasible(space: SearchSpace, budget: Budget) -> bool:
    """Whether some child of the space is within the budget; cheaper than to count them.

    Exact but for spaces with too many sums: there children that a walk and many draws do not find count as none.
    """
    layers, windows = _layers_of(space, [limit.cost for limit in budget.limits]), [*map(_window_of, budget.limits)]
    with suppress(TooManySumsError):
        return Walk(layers, windows, _SHORT_WALK).is_feasible()
    draws = TiltedDraws(layers, windows)
    if draws.is_surely_empty:
        return False
    return draws.draw(np.random.default_rng(0), _SHORT_WALK) is not None


class BudgetedSpace:
    """The children of a space that are within a budget, counted and drawn.

    They are drawn uniformly, and each is within the budget exactly. Counted exactly are they where the space has few
    enough distinct sums of costs; else their number is an estimate, see `is_exact`.

    Args:
        space: the children to choose from.
        budget: what they may cost.
        max_transitions: length of the walk over sums of costs after which children are drawn without one.

    Attributes:
        size: number of children within the budget; 0 only where there is surely none.
        is_exact: whether `size` is exact.
        size_error: relative standard error of `size`, 0 where it is exact.

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

    @property
    def size_text(self) -> str:
        """The size in words: all digits where it is exact, else how far off it may be."""
        if self.is_exact:
            return f"{self.size:,}"
        percent = float(f"{100 * self.size_error:.1g}")
        return f"about {short_text(self.size)} (estimated, standard error {percent:g}%)"

    def check(self) -> None:
        """Raise an InfeasibleBudgetError where no child is within the budget."""
        if self.size == 0:
            nearest = self.nearest()
            is_any_known = any(values.below is not None or values.above is not None for values in nearest)
            remedy = "move a limit to a reachable value" if is_any_known else "widen a limit, or leave one out"
            raise InfeasibleBudgetError(
                f"no child of the space is within the budget {self.budget}: {'; '.join(map(str, nearest))}; {remedy}"
            )

    def sample(self, rng: random.Random) -> Architecture:
        """A child drawn uniformly from those within the budget.

        Raises:
            InfeasibleBudgetError: there is none.
        """
        self.check()
        return self._way.sample(rng)

    def children(self) -> Iterator[Architecture]:
        """Every child within the budget once, the last layer changing fastest; look at `size` before walking them."""
        return self._way.children()

    def nearest(self) -> tuple[NearestValues, ...]:
        """For each limit the values next to its window that can be reached while the other limits are met."""
        limits = self.budget.limits
        return tuple(_nearest(self.space, limit, (*limits[:i], *limits[i + 1 :])) for i, limit in enumerate(limits))

    def restricted(self, space: SearchSpace) -> "BudgetedSpace":
        """The same budget over another space, such as what two parents leave open.

        Raises:
            WideBudgetError: its children can neither be counted nor drawn.
        """
        # Parts of a space that is too wide to walk over are often so as well, and a search asks for many of them.
        return BudgetedSpace(space, self.budget, self._max_transitions if self.is_exact else _SHORT_WALK)


class _Counted:
    """The children within a budget by number, from the sums of their costs."""

    size_error = 0.0

    def __init__(self, space: SearchSpace, walk: Walk) -> None:
        # Empty where the space as a whole is out of reach; no choices are kept for it then.
        self._first = walk.class_of(0, walk.start) or ()
        # For each layer and class of partial sums: operators, number of children through each, and where they lead.
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
    """The children within a budget as draws find them."""

    def __init__(self, space: SearchSpace, budget: Budget, draws: TiltedDraws) -> None:
        self._space, self._budget, self._draws = space, budget, draws
        self.size, self.size_error = 0, 0.0
        if not draws.is_surely_empty:
            estimate = draws.estimate(np.random.default_rng(0))
            if estimate is None:
                raise WideBudgetError(
                    f"the children within the budget {budget} can neither be counted nor drawn: the space of "
                    f"{space.num_layers} layers has too many distinct sums of costs to walk over, and draws have "
                    f"found no child within all limits; widen the narrowest window, give fewer limits, or take a "
                    f"space with fewer operators"
                )
            # A child was kept, whatever the estimate is.
            self.size, self.size_error = max(1, estimate.size), estimate.error

    def sample(self, rng: random.Random) -> Architecture:
        generator = np.random.default_rng(rng.getrandbits(128))
        while True:
            options = self._draws.draw(generator)
            if options is None:
                continue
            child = tuple(layer[option] for layer, option in zip(self._space.candidates, options, strict=True))
            # Sums beyond the precision of floats are held to the limits once more.
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
    """What the children of a space cost.

    Attributes:
        smallest: the smallest value.
        median: half of the children cost at most this; of two middle values the smaller, so that a child has it.
        largest: the largest value.
        smallest_child: a child of the smallest value.
        largest_child: a child of the largest value.
        median_is_exact: whether `median` is that of all children; else it is that of a large sample of them.
    """

    smallest: float
    median: float
    largest: float
    smallest_child: Architecture
    largest_child: Architecture
    median_is_exact: bool = True


def summarize_cost(space: SearchSpace, cost: AdditiveCost) -> CostSummary:
    """The smallest, median and largest cost of the children of a space, exact but for the median of very wide ones."""
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
