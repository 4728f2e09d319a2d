"""Counting, drawing and the nearest reachable values against every child, one by one."""

import math
import random
import re
import time
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from training.space.budgets import (
    AdditiveCost,
    Budget,
    BudgetedSpace,
    InfeasibleBudgetError,
    Limit,
    NearestValues,
    WideBudgetError,
    format_value,
    is_feasible,
    short_text,
    summarize_cost,
)
from training.space.search_space import SearchSpace


NAMES = ("MHA4", "MHA2", "FFN", "CONV3", "CONV5", "SKIP")
UNITS = (1, 1e-6, 2**-20, 0.1, 3)

spaces = st.lists(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True), min_size=1, max_size=5).map(
    lambda layers: SearchSpace(tuple(map(tuple, layers)))
)


@st.composite
def costs(draw, name: str = "cost") -> AdditiveCost:
    # A few small numbers, so that different children cost the same, or any numbers, so that none do.
    counts = st.sampled_from([0, 1, 2, 5]) if draw(st.booleans()) else st.integers(0, 10**6)
    operators = {operator: 0 if operator == "SKIP" else draw(counts) for operator in NAMES}
    return AdditiveCost(name, draw(st.integers(0, 30)), operators, draw(st.sampled_from(UNITS)))


@st.composite
def limits(draw, space: SearchSpace, name: str) -> Limit:
    """A window whose ends are, or lie between, what children cost; often one that no child meets."""
    cost = draw(costs(name))
    values = sorted({cost(child) for child in space.children()})
    ends = [
        *values,
        *(low + (high - low) * share for low, high in pairwise(values) for share in (0.3, 0.7)),
    ]
    ends += [values[0] / 2, values[-1] * 2 + 1]
    first, second = sorted(draw(st.tuples(st.sampled_from(ends), st.sampled_from(ends))))
    kind = draw(st.sampled_from(["minimum", "maximum", "window"]))
    return Limit(cost, first if kind != "maximum" else None, second if kind != "minimum" else None)


@st.composite
def budgeted(draw, max_limits: int = 3) -> tuple[SearchSpace, Budget]:
    space = draw(spaces)
    count = draw(st.integers(1, max_limits))
    return space, Budget(tuple(draw(limits(space, f"cost_{index}")) for index in range(count)))


def meets(limit: Limit, child) -> bool:
    """Independent of `Limit.allows`: on values, not on whole numbers."""
    value = limit.cost(child)
    return (limit.minimum is None or value >= limit.minimum) and (limit.maximum is None or value <= limit.maximum)


def within(space: SearchSpace, budget_limits) -> set:
    return {child for child in space.children() if all(meets(limit, child) for limit in budget_limits)}


class Ordered(random.Random):
    """A generator whose next whole number is given."""

    def __init__(self, number: int):
        super().__init__(0)
        self.number = number

    def randrange(self, start, stop=None, step=1):
        assert stop is None
        assert self.number < start
        return self.number


# Against every child


@given(budgeted())
def test_as_many_children_as_one_by_one(case):
    space, budget = case
    expected = within(space, budget.limits)
    restricted = BudgetedSpace(space, budget)
    assert restricted.size == len(expected)
    assert is_feasible(space, budget) == bool(expected)
    for child in space.children():
        assert budget.allows(child) == (child in expected) == (child in restricted)


@given(budgeted())
def test_each_child_within_is_drawn_for_exactly_one_number(case):
    space, budget = case
    expected = within(space, budget.limits)
    restricted = BudgetedSpace(space, budget)
    drawn = [restricted.sample(Ordered(number)) for number in range(restricted.size)]
    assert drawn == [child for child in space.children() if child in expected]
    assert list(restricted.children()) == drawn


@given(budgeted(), st.data())
def test_the_same_budget_over_what_two_parents_leave(case, data):
    space, budget = case
    parents = data.draw(st.tuples(*[st.sampled_from(list(space.children()))] * 2))
    smaller = SearchSpace(tuple(tuple(dict.fromkeys(operators)) for operators in zip(*parents, strict=True)))
    restricted = BudgetedSpace(space, budget).restricted(smaller)
    assert restricted.budget == budget
    assert restricted.size == len(within(smaller, budget.limits))


@given(budgeted(max_limits=1))
def test_nearest_values_of_one_limit(case):
    space, budget = case
    (limit,) = budget.limits
    values = {limit.cost(child) for child in space.children()}
    below = [value for value in values if limit.minimum is not None and value < limit.minimum]
    above = [value for value in values if limit.maximum is not None and value > limit.maximum]
    expected = NearestValues(limit, max(below, default=None), min(above, default=None), others_met=True)
    assert BudgetedSpace(space, budget).nearest() == (expected,)


@given(budgeted())
def test_error_if_and_only_if_no_child_is_within(case):
    space, budget = case
    restricted = BudgetedSpace(space, budget)
    if within(space, budget.limits):
        restricted.check()
        assert restricted.sample(random.Random(0)) in within(space, budget.limits)
        return
    with pytest.raises(InfeasibleBudgetError) as drawing:
        restricted.sample(random.Random(0))
    with pytest.raises(InfeasibleBudgetError) as checking:
        restricted.check()
    message = str(checking.value)
    assert message == str(drawing.value)
    assert str(budget) in message
    nearest = restricted.nearest()
    for index, limit in enumerate(budget.limits):
        others = budget.limits[:index] + budget.limits[index + 1 :]
        children = within(space, others)
        assert nearest[index].others_met == bool(children)
        if not children:
            assert f"the limits other than {limit.cost.name} cannot be met" in message
            children = set(space.children())
        values = {limit.cost(child) for child in children}
        if any(meets(limit, child) for child in children):
            values = set()
        below = max((value for value in values if limit.minimum is not None and value < limit.minimum), default=None)
        above = min((value for value in values if limit.maximum is not None and value > limit.maximum), default=None)
        assert (nearest[index].below, nearest[index].above) == (below, above)
        for value, side in ((below, "below"), (above, "above")):
            assert value is None or f"{format_value(value)}, {side} the limit" in message


@given(budgeted())
def test_a_limit_moved_to_the_nearest_value_can_be_met(case):
    space, budget = case
    for index, near in enumerate(BudgetedSpace(space, budget).nearest()):
        others = budget.limits[:index] + budget.limits[index + 1 :] if near.others_met else ()
        for value in (near.below, near.above):
            if value is not None:
                # What the message prints is what a user types.
                typed = float(format_value(value).replace(",", ""))
                moved = Budget((Limit(near.limit.cost, typed, typed), *others))
                assert BudgetedSpace(space, moved).size > 0


@given(spaces, costs())
def test_summary_of_a_cost(space, cost):
    values = sorted(cost(child) for child in space.children())
    summary = summarize_cost(space, cost)
    assert (summary.smallest, summary.largest) == (values[0], values[-1])
    assert summary.median == values[(len(values) - 1) // 2]
    assert cost(summary.smallest_child) == values[0]
    assert cost(summary.largest_child) == values[-1]
    assert summary.smallest_child in space
    assert summary.largest_child in space


@given(spaces)
def test_without_limits_every_child_is_allowed(space):
    restricted = BudgetedSpace(space, Budget())
    assert restricted.size == space.size
    assert {restricted.sample(Ordered(number)) for number in range(space.size)} == set(space.children())
    assert restricted.nearest() == ()
    assert is_feasible(space, Budget())


@given(costs(), st.lists(st.sampled_from(NAMES), max_size=6))
def test_a_cost_is_the_constant_and_a_sum(cost, architecture):
    count = cost.fixed
    for operator in architecture:
        count += cost.operators[operator]
    assert cost.count(architecture) == count
    assert cost(architecture) == pytest.approx(count * cost.unit, rel=1e-15)
    assert isinstance(cost(architecture), int) == (cost.unit == 1)


@given(costs(), st.integers(0, 10**19), st.floats(0, 1e12))
def test_whole_numbers_on_either_side_of_a_value(cost, count, value):
    exact = cost.value(count)
    for bound in (exact, math.nextafter(exact, 0), math.nextafter(exact, math.inf), value):
        largest, smallest = cost.largest_count(bound), cost.smallest_count(bound)
        assert cost.value(largest) <= bound < cost.value(largest + 1)
        assert cost.value(smallest - 1) < bound <= cost.value(smallest)


# Drawing


def test_drawing_is_uniform():
    space = SearchSpace((("MHA4", "FFN", "CONV3"), ("FFN", "CONV3"), ("MHA4", "CONV5"), ("MHA4", "FFN", "CONV3")))
    cost = AdditiveCost("num_parameters", 7, {"MHA4": 4, "FFN": 8, "CONV3": 3, "CONV5": 3})
    restricted = BudgetedSpace(space, Budget((Limit(cost, 20, 27),)))
    rng = random.Random(3)
    drawn = Counter(restricted.sample(rng) for _ in range(20_000))
    assert 10 < restricted.size < space.size
    assert set(drawn) == within(space, restricted.budget.limits)
    assert chisquare(list(drawn.values())).pvalue > 0.001


def test_the_same_seed_draws_the_same_children():
    cost = AdditiveCost("flops", 0, dict.fromkeys(NAMES, 3))
    restricted = BudgetedSpace(SearchSpace((NAMES,) * 4), Budget((Limit(cost, maximum=12),)))
    first, second = random.Random(5), random.Random(5)
    assert [restricted.sample(first) for _ in range(20)] == [restricted.sample(second) for _ in range(20)]


# The paper's space, counted in another way: by how often a child holds each operator


LARGE = SearchSpace((("MHA12", "FFN", "CONV3", "CONV5"),) * 26)
LARGE_COSTS = (
    AdditiveCost("num_parameters", 24_459_834, {"MHA12": 2363904, "FFN": 4723968, "CONV3": 1185792, "CONV5": 1187328}),
    AdditiveCost("flops", 10**4, {"MHA12": 652, "FFN": 1214, "CONV3": 309, "CONV5": 313}),
    AdditiveCost("latency_ms", 3_141_592, {"MHA12": 2718281, "FFN": 1618033, "CONV3": 577215, "CONV5": 1202056}, 1e-6),
)


def children_by_multiset():
    """For each multiset of 26 operators a child that holds it, and the number of such children."""
    for first in range(27):
        for second in range(27 - first):
            for third in range(27 - first - second):
                times = (first, second, third, 26 - first - second - third)
                child = [name for name, time in zip(LARGE.candidates[0], times, strict=True) for _ in range(time)]
                yield child, math.factorial(26) // math.prod(map(math.factorial, times))


@pytest.mark.parametrize("num_limits", [1, 2, 3])
def test_counts_of_the_papers_space(num_limits):
    medians = [summarize_cost(LARGE, cost).median for cost in LARGE_COSTS]
    limits = [
        Limit(LARGE_COSTS[0], maximum=medians[0]),
        Limit(LARGE_COSTS[1], medians[1] - 2000, medians[1] + 1000),
        Limit(LARGE_COSTS[2], medians[2] * 0.95),
    ][:num_limits]
    restricted = BudgetedSpace(LARGE, Budget(tuple(limits)))
    expected = sum(number for child, number in children_by_multiset() if all(meets(limit, child) for limit in limits))
    assert 0 < restricted.size == expected < LARGE.size
    assert is_feasible(LARGE, restricted.budget)
    rng = random.Random(0)
    assert all(restricted.sample(rng) in restricted for _ in range(50))


def test_a_budget_that_no_child_of_the_papers_space_meets():
    """The windows are met one by one but not together: found without a walk over 4.5e15 children."""
    medians = [summarize_cost(LARGE, cost).median for cost in LARGE_COSTS]
    limits = [Limit(cost, median * 0.9999, median * 1.0001) for cost, median in zip(LARGE_COSTS, medians, strict=True)]
    restricted = BudgetedSpace(LARGE, Budget(tuple(limits)))
    assert restricted.size == 0
    assert not is_feasible(LARGE, restricted.budget)
    children = [child for child, _ in children_by_multiset()]
    for index, near in enumerate(restricted.nearest()):
        limit, others = limits[index], limits[:index] + limits[index + 1 :]
        values = {limit.cost(child) for child in children if all(meets(other, child) for other in others)}
        assert near.others_met == bool(values)
        if not values:
            # Each of the windows can be met alone.
            assert near.below is near.above is None
            continue
        assert near.below == max((value for value in values if value < limit.minimum), default=None)
        assert near.above == min((value for value in values if value > limit.maximum), default=None)
    with pytest.raises(InfeasibleBudgetError):
        restricted.check()


@pytest.mark.parametrize("cost", LARGE_COSTS, ids=lambda cost: cost.name)
def test_summary_of_the_papers_space(cost: AdditiveCost):
    counted: Counter[float] = Counter()
    for child, number in children_by_multiset():
        counted[cost(child)] += number
    passed, median = 0, 0.0
    for value in sorted(counted):
        passed += counted[value]
        if passed >= LARGE.size // 2:
            median = value
            break
    summary = summarize_cost(LARGE, cost)
    assert (summary.smallest, summary.median, summary.largest) == (min(counted), median, max(counted))


# Spaces with too many sums to walk over


@settings(max_examples=20)
@given(budgeted())
def test_without_a_walk_children_are_drawn_within_the_budget_and_their_number_is_near(case):
    space, budget = case
    expected = within(space, budget.limits)
    try:
        estimated = BudgetedSpace(space, budget, max_transitions=0)
    except WideBudgetError:
        # A window between two values that children have: no draw is kept, and none can be.
        assert not expected
        return
    assert abs(estimated.size - len(expected)) <= 6 * estimated.size_error * len(expected) + 0.5
    if expected:
        rng = random.Random(0)
        assert {estimated.sample(rng) for _ in range(20)} <= expected
    assert set(estimated.children()) == expected


def test_drawing_without_a_walk_is_uniform():
    space = SearchSpace((("MHA4", "FFN", "CONV3"), ("FFN", "CONV3"), ("MHA4", "CONV5"), ("MHA4", "FFN", "CONV3")))
    costs = [
        AdditiveCost("num_parameters", 7, {"MHA4": 4, "FFN": 8, "CONV3": 3, "CONV5": 3}),
        AdditiveCost("flops", 0, {"MHA4": 5, "FFN": 1, "CONV3": 4, "CONV5": 2}),
    ]
    budget = Budget((Limit(costs[0], 20, 27), Limit(costs[1], maximum=12)))
    estimated = BudgetedSpace(space, budget, max_transitions=0)
    rng = random.Random(3)
    drawn = Counter(estimated.sample(rng) for _ in range(5_000))
    assert not estimated.is_exact
    assert set(drawn) == within(space, budget.limits)
    assert chisquare(list(drawn.values())).pvalue > 0.001


def test_estimates_of_the_papers_space_are_as_near_as_they_say():
    medians = [summarize_cost(LARGE, cost).median for cost in LARGE_COSTS]
    for share in (0.7, 0.85, 1.0):
        limits = [Limit(cost, maximum=median * share) for cost, median in zip(LARGE_COSTS, medians, strict=True)]
        budget = Budget((*limits[:2], Limit(LARGE_COSTS[2], medians[2] * 0.4, medians[2] * share)))
        exact, estimated = BudgetedSpace(LARGE, budget), BudgetedSpace(LARGE, budget, max_transitions=100)
        assert exact.is_exact
        assert exact.size_text == f"{exact.size:,}"
        assert 0 < estimated.size_error < 0.02
        assert abs(estimated.size / exact.size - 1) < 5 * estimated.size_error


WIDE_NAMES = ("MHA12", "MHA8", "FFN", "FFNx512", "CONV3", "CONV5", "CONV7", "SKIP")
WIDE = SearchSpace((WIDE_NAMES,) * 64)
# Numbers that have no unit in common.
WIDE_COSTS = [
    AdditiveCost(name, 10**6, {name: seeded.randrange(10**5, 10**7) for name in WIDE_NAMES}, unit)
    for seeded, name, unit in ((random.Random(1), "num_parameters", 1), (random.Random(2), "flops", 1))
] + [AdditiveCost("latency_ms", 0, {n: random.Random(n).randrange(10**5, 10**7) for n in WIDE_NAMES}, 1e-6)]


@pytest.mark.parametrize("num_limits", [1, 3])
def test_a_space_with_too_many_sums_is_counted_and_drawn_from_at_once(num_limits):
    rng = random.Random(0)
    children = [WIDE.sample(rng) for _ in range(4_000)]
    limits = [Limit(cost, maximum=sorted(map(cost, children))[1000]) for cost in WIDE_COSTS[:num_limits]]
    start = time.process_time()
    estimated = BudgetedSpace(WIDE, Budget(tuple(limits)))
    drawn = [estimated.sample(rng) for _ in range(1000)]
    assert time.process_time() - start < 10
    assert all(child in WIDE and meets(limit, child) for child in drawn for limit in limits)
    assert len(set(drawn)) == 1000
    share = sum(all(meets(limit, child) for limit in limits) for child in children) / len(children)
    error = math.sqrt(share * (1 - share) / len(children))
    assert estimated.size / WIDE.size == pytest.approx(share, abs=5 * (error + estimated.size_error * share))
    assert estimated.size_text.startswith(f"about {short_text(estimated.size)} (estimated, standard error ")
    assert is_feasible(WIDE, estimated.budget)


def test_feasibility_of_a_space_with_too_many_sums():
    cost, other = WIDE_COSTS[0], WIDE_COSTS[1]
    summary = summarize_cost(WIDE, cost)
    assert not summary.median_is_exact
    at_most = BudgetedSpace(WIDE, Budget((Limit(cost, maximum=summary.smallest),)))
    assert at_most.is_exact
    assert at_most.size == 1
    below = Budget((Limit(cost, maximum=summary.smallest - 1), Limit(other, minimum=1)))
    assert not is_feasible(WIDE, below)
    with pytest.raises(
        InfeasibleBudgetError, match=f"nearest value of num_parameters that a child has is {summary.smallest:,}, above"
    ):
        BudgetedSpace(WIDE, below).check()
    # The child of the fewest parameters has few FLOPs: together the windows are out of reach, each alone is not.
    apart = Budget(
        (Limit(cost, maximum=summary.smallest * 1.2), Limit(other, minimum=summarize_cost(WIDE, other).largest * 0.97))
    )
    assert all(is_feasible(WIDE, Budget((limit,))) for limit in apart.limits)
    assert not is_feasible(WIDE, apart)
    with pytest.raises(InfeasibleBudgetError, match=r"flops that a child has is unknown: .*; widen or remove a limit"):
        BudgetedSpace(WIDE, apart).check()


def test_a_rough_estimate_says_so_in_plain_digits():
    cost = AdditiveCost("flops", 0, {f"FFNx{2**bit}": 2**bit for bit in range(17)} | {"SKIP": 0})
    space = SearchSpace(tuple((f"FFNx{2**bit}", "SKIP") for bit in range(17)))
    estimated = BudgetedSpace(space, Budget((Limit(cost, 50_000, 50_009),)), max_transitions=0)
    assert estimated.size_error > 0.1
    assert re.fullmatch(r"about \d+ \(estimated, standard error [1-9]0%\)", estimated.size_text)


def test_windows_too_narrow_for_a_space_with_too_many_sums():
    limits = []
    for cost in WIDE_COSTS:
        median = summarize_cost(WIDE, cost).median
        limits.append(Limit(cost, median * (1 - 1e-7), median * (1 + 1e-7)))
    with pytest.raises(WideBudgetError, match="widen the narrowest limit, give fewer limits, or choose a space with"):
        BudgetedSpace(WIDE, Budget(tuple(limits)), max_transitions=1_000)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999_999, "999,999"), (8**400, "1.72e+361"), (9_999_999, "1.00e+7")]
)
def test_numbers_of_any_size_with_three_digits(number, text):
    assert short_text(number) == text


# What is said and what is refused


COST = AdditiveCost("num_parameters", 10, {"FFN": 4, "CONV3": 1})
LATENCY = AdditiveCost("latency_ms", 0, {"FFN": 2_000_000, "CONV3": 500_001}, 1e-6)
TWO = SearchSpace((("FFN", "CONV3"),) * 2)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ((), "no limit"),
        ((Limit(COST, maximum=8e6), Limit(LATENCY, maximum=5.0)), "num_parameters <= 8,000,000 and latency_ms <= 5"),
        ((Limit(COST, minimum=8000),), "num_parameters >= 8,000"),
        ((Limit(LATENCY, 0.25, 1234.5),), "0.25 <= latency_ms <= 1,234.5"),
    ],
)
def test_budget_as_text(limits, text):
    assert str(Budget(limits)) == text


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            (Limit(COST, 13, 14),),
            "no child of the space is within the budget 13 <= num_parameters <= 14: the nearest value of "
            "num_parameters that a child has is 12, below the limit, and 15, above the limit; move a limit to a "
            "reachable value",
        ),
        (
            (Limit(LATENCY, maximum=1),),
            "the nearest value of latency_ms that a child has is 1.000002, above the limit; move",
        ),
        (
            (Limit(COST, maximum=12), Limit(LATENCY, minimum=3)),
            "num_parameters <= 12 and latency_ms >= 3: the nearest value of num_parameters that a child has is 18, "
            "above the limit; the nearest value of latency_ms that a child has is 1.000002, below the limit; move",
        ),
        (
            (Limit(COST, maximum=1), Limit(LATENCY, maximum=1)),
            ": the limits other than num_parameters cannot be met; without them, the nearest value of "
            "num_parameters that a child has is 12, above the limit; the limits other than latency_ms cannot be "
            "met; without them, the nearest value of latency_ms that a child has is 1.000002, above the limit; move",
        ),
        (
            (Limit(COST, maximum=18), Limit(LATENCY, maximum=1)),
            ": the limits other than num_parameters cannot be met; the nearest value of latency_ms that a child has "
            "is 1.000002, above",
        ),
    ],
)
def test_message_of_a_budget_that_cannot_be_met(limits, message):
    with pytest.raises(InfeasibleBudgetError) as error:
        BudgetedSpace(TWO, Budget(limits)).check()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"minimum": 5, "maximum": 4.5}, "the minimum of num_parameters, 5, is above its maximum, 4.5"),
        ({"maximum": float("nan")}, "the maximum of num_parameters is nan; give a number of at least 0, or omit it"),
        ({"minimum": float("nan"), "maximum": 3}, "the minimum of num_parameters is nan"),
        ({"maximum": -1}, "the maximum of num_parameters is -1"),
        ({"minimum": -0.5}, "the minimum of num_parameters is -0.5"),
        ({"maximum": math.inf}, "the maximum of num_parameters is inf"),
        ({}, "the limit of num_parameters has no bound; give a minimum or a maximum"),
    ],
)
def test_wrong_limits_are_refused(bounds, message):
    with pytest.raises(ValueError, match=message):
        Limit(COST, **bounds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fixed": -1}, "flops of the constant is -1; it must be a whole number of at least 0"),
        ({"operators": {"FFN": 1.5}}, "flops of FFN is 1.5; it must be a whole number of at least 0"),
        ({"operators": {"FFN": -2}}, "flops of FFN is -2"),
        ({"unit": 0}, "the unit of flops is 0; it must be a positive number"),
        ({"unit": float("nan")}, "the unit of flops is nan"),
    ],
)
def test_wrong_costs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdditiveCost(**{"name": "flops", "fixed": 0, "operators": {"FFN": 1}, **arguments})


def test_operators_without_a_cost_are_named():
    message = "num_parameters is unknown for the operator 'MHA4'; known operators: FFN, CONV3"
    with pytest.raises(ValueError, match=message):
        COST(("FFN", "MHA4"))
    space = SearchSpace((("FFN", "MHA4"),))
    with pytest.raises(ValueError, match=message):
        BudgetedSpace(space, Budget((Limit(COST, maximum=20),)))
    with pytest.raises(ValueError, match=message):
        summarize_cost(space, COST)


def test_budgets_are_values():
    again = AdditiveCost("num_parameters", 10, {"FFN": 4, "CONV3": 1})
    assert {Budget((Limit(COST, maximum=5),)): 1}[Budget((Limit(again, maximum=5),))] == 1


def test_reprs_are_one_line_that_says_what_matters():
    space = SearchSpace([["MHA4", "FFN"]] * 3)
    cost = AdditiveCost("num_parameters", 10, {"MHA4": 1, "FFN": 2}, 1)
    budget = Budget((Limit(cost, maximum=14),))
    assert repr(space) == "SearchSpace(3 layers, 8 children)"
    assert repr(budget) == "Budget(num_parameters <= 14)"
    assert repr(BudgetedSpace(space, budget)) == "BudgetedSpace(4 of 8 children, num_parameters <= 14)"
