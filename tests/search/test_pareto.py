"""Fronts against brute force and pymoo's sorting, and where the children of a report come from."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
from toy_report import BERT_CHILD, COSTS, NAN, RANDOM, SEARCHED, single, within

from training.search.pareto import (
    ALL_OBJECTIVES,
    ReportChild,
    cost_names,
    distinct_children,
    format_cost,
    known_cost,
    pareto_front,
    pareto_fronts,
    report_children,
)


NAMES = ["num_parameters", "flops", "latency_ms"]


def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


values = st.one_of(st.integers(0, 4).map(float), st.sampled_from([math.nan, math.inf, -math.inf, 0.1 + 0.2, 0.3]))
some_children = st.lists(
    st.builds(
        ReportChild,
        architecture=st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("xy")),
        val_loss=values,
        val_accuracy=st.just(0.5),
        costs=st.dictionaries(st.sampled_from(NAMES), values),
        source=st.just("search"),
        order=st.just(1),
    ),
    max_size=14,
    unique_by=lambda child: child.architecture,
)


@given(
    some_children, st.sampled_from([[], ["flops"], ["flops", "latency_ms"], ["latency_ms", "num_parameters", "flops"]])
)
def test_front_is_what_brute_force_finds(children, names):
    points = {
        child.architecture: (*(child.costs.get(name, math.nan) for name in names), child.val_loss)
        for child in children
    }
    points = {child: point for child, point in points.items() if all(map(math.isfinite, point))}
    expected = {child for child, point in points.items() if not any(beats(other, point) for other in points.values())}
    front = [child.architecture for child in pareto_front([*children, *children], names)]
    assert len(front) == len(set(front))
    assert set(front) == expected
    assert front == sorted(front, key=lambda child: (points[child], child))


def child_of(number: int, values, names) -> ReportChild:
    """A child of its own for each number, its costs and its loss in this order."""
    *costs, loss = map(float, values)
    return single(architecture=(f"FFNx{number + 1}",), val_loss=loss, costs=dict(zip(names, costs, strict=True)))


@pytest.mark.parametrize("num_costs", [1, 2, 3])
@pytest.mark.parametrize("is_coarse", [False, True])
def test_front_is_the_first_of_pymoos_non_dominated_sorting(num_costs, is_coarse):
    """Of many children, and of values so coarse that most are tied or equal in all."""
    rng, names = np.random.default_rng(num_costs), NAMES[:num_costs]
    for number in (1, 2, 40, 400):
        points = rng.random((number, num_costs + 1))
        points = np.round(4 * points) if is_coarse else points
        children = [child_of(row, point, names) for row, point in enumerate(points)]
        first = NonDominatedSorting().do(points, only_non_dominated_front=True)
        assert {child.architecture for child in pareto_front(children, names)} == {
            children[row].architecture for row in first
        }


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_fronts_depend_on_order_alone(points, rng):
    names = NAMES[:2]
    children = [child_of(row, point, names) for row, point in enumerate(points)]
    front = pareto_front(children, names)
    assert pareto_front(rng.sample(children, len(children)), names) == front
    # Of the front alone the front is all, and what stands behind a child of it changes nothing.
    assert pareto_front(front, names) == front
    behind = [replace(child, architecture=("CONV3",), val_loss=child.val_loss + 1) for child in children[:1]]
    assert pareto_front([*children, *behind], names) == front
    # Nor do units, or whatever else keeps the order.
    rescaled = [
        replace(
            child, val_loss=math.exp(child.val_loss), costs={name: 3 * cost - 7 for name, cost in child.costs.items()}
        )
        for child in children
    ]
    kept = [child.architecture for child in pareto_front(rescaled, names)]
    assert kept == [child.architecture for child in front]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_loss_falls_as_the_cost_rises(points):
    children = [child_of(row, point, ["flops"]) for row, point in enumerate(points)]
    front = [(child.costs["flops"], child.val_loss) for child in pareto_front(children, ["flops"])]
    distinct = sorted(set(front))
    assert front == sorted(front)
    assert all(one[0] < other[0] and one[1] > other[1] for one, other in pairwise(distinct))
    assert distinct[0][0] == min(cost for cost, _ in points)
    assert distinct[-1][1] == min(loss for _, loss in points)


def test_the_first_evaluation_of_an_architecture_counts():
    first, again = single(val_loss=3.0, order=1), single(val_loss=2.0, order=2, source="random")
    other = single(architecture=("CONV3",), val_loss=2.5, costs={"num_parameters": 20})
    assert distinct_children([first, other, again]) == [first, other]
    assert pareto_front([first, other, again], ["num_parameters"]) == [first, other]
    assert pareto_front([again, other, first], ["num_parameters"]) == [again]
    assert distinct_children([]) == pareto_front([], ["num_parameters"]) == []


def test_there_is_a_front_for_each_cost_and_one_for_all():
    cheap = single(architecture=("CONV3",), val_loss=4.0, costs={"num_parameters": 1, "latency_ms": 9.0})
    fast = single(architecture=("FFN",), val_loss=4.5, costs={"num_parameters": 5, "latency_ms": 1.0})
    good = single(architecture=("MHA4",), val_loss=3.0, costs={"num_parameters": 9, "latency_ms": 9.5})
    middle = single(architecture=("CONV5",), val_loss=4.2, costs={"latency_ms": 5.0, "num_parameters": 6})
    unknown = single(architecture=("CONV7",), val_loss=1.0, costs={"num_parameters": 2})
    children = [cheap, fast, good, middle, unknown]
    assert cost_names(children) == ["num_parameters", "latency_ms"]
    assert pareto_fronts(children) == {
        "num_parameters": [cheap, unknown],
        "latency_ms": [fast, middle, cheap, good],
        ALL_OBJECTIVES: [cheap, fast, middle, good],
    }
    # Without a cost, the front is the best loss.
    assert pareto_fronts([replace(child, costs={}) for child in children]) == {
        ALL_OBJECTIVES: [replace(unknown, costs={})]
    }
    assert cost_names([]) == []


@pytest.mark.parametrize(
    ("costs", "known"), [({"flops": 2.0}, 2.0), ({"flops": 0}, 0), ({}, None), ({"flops": NAN}, None)]
)
def test_a_cost_is_known_or_none(costs, known):
    assert known_cost(single(costs=costs), "flops") == known


def test_children_know_where_they_come_from():
    children = report_children(SEARCHED[:3], RANDOM[:2], BERT_CHILD, COSTS, within)
    assert [(child.source, child.order) for child in children] == [
        *(("search", order) for order in (1, 2, 3)),
        *(("random", order) for order in (1, 2)),
        ("BERT pattern", 1),
    ]
    assert children[-1].costs == {"num_parameters": 18_000_000, "latency_ms": pytest.approx(4.9)}
    assert [child.in_budget for child in children] == [True] * 5 + [False]
    assert all(child.source != "BERT pattern" for child in report_children(SEARCHED, RANDOM, None, COSTS, within))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_parameters", 8_123_456, "8.12M"),
        ("num_parameters", 20_480, "20,480"),
        ("flops", 2.86e10, "2.86e+10"),
        ("latency_ms", 5, "5.00"),
        ("latency_ms", 0.01234, "0.0123"),
        ("latency_ms", 1234.5, "1,234"),
        ("latency_ms", None, "unknown"),
        ("latency_ms", math.inf, "unknown"),
    ],
)
def test_costs_are_rounded_for_tables(name, value, text):
    assert format_cost(name, value) == text


def point(child: ReportChild) -> tuple[float, float]:
    return float(child.costs["num_parameters"]), child.val_loss
